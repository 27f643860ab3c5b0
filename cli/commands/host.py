"""`vmorch host`."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from cli.changing import record, show_secret
from cli.client import decode
from cli.events import columns_of_events, last_events
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Certificate, Host, Single, VmRow
from cli.table import Column, lines, pairs
from cli.transport import quote
from cli.units import show_gib, show_labels, show_mib, show_seconds, show_time
from cli.verbs import PAIR, Entry, Group, SectionOption, change_options, compares, past_option, verb

_HERE = "cli.commands.host"

host = Group(
    "host",
    {
        "list": Entry(f"{_HERE}:list_hosts", "List hosts and what is promised on them", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Everything about a host", "Look"),
        "enroll": Entry(f"{_HERE}:enroll", "Invite a host: make its one-time token", "Change"),
        "cordon": Entry(f"{_HERE}:cordon", "Place no new VM on a host", "Change"),
        "uncordon": Entry(f"{_HERE}:uncordon", "Place VMs on a host again", "Change"),
        "drain": Entry("cli.commands.host_drain:drain", "Move every VM away from hosts", "Change"),
        "activate": Entry("cli.commands.host_drain:activate", "Return a host to service", "Change"),
        "maintenance": Entry(
            "cli.commands.host_maintenance:maintenance", "Take hosts out of service for work, and back", "Change"
        ),
        "label": Entry(f"{_HERE}:label", "Set or remove a host's labels", "Change"),
        "overcommit": Entry(f"{_HERE}:overcommit", "Set how much more than it has it may promise", "Change"),
        "retire": Entry(f"{_HERE}:retire", "Take an empty host out of the cluster", "Change"),
    },
    help="Hosts that run VMs.",
    foreign={
        "get": "vmorch host list",
        "ls": "vmorch host list",
        "show": "vmorch host describe NAME",
        "info": "vmorch host describe NAME",
        "add": "vmorch host enroll NAME",
        "create": "vmorch host enroll NAME",
        "invite": "vmorch host enroll NAME",
        "disable": "vmorch host cordon NAME",
        "enable": "vmorch host uncordon NAME",
        "evacuate": "vmorch host drain NAME",
        "empty": "vmorch host drain NAME",
        "restore": "vmorch host activate NAME --bring-back",
        "undrain": "vmorch host activate NAME",
        "delete": "vmorch host retire NAME",
        "remove": "vmorch host retire NAME",
        "rm": "vmorch host retire NAME",
    },
    examples=("vmorch host list", 'vmorch host drain hv-03 --plan', 'vmorch host cordon hv-03 -m "DIMM swap"'),
)

_STYLES = {
    "active": "good",
    "cordoned": "warn",
    "draining": "warn",
    "maintenance": "warn",
    "unreachable": "bad",
    "retired": "dim",
    "invited": "dim",
}


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Host]]]:
    def columns(at: datetime) -> Sequence[Column[Host]]:
        return [
            Column(header="NAME", cell=lambda host: host.name),
            Column(
                header="STATE", cell=lambda host: host.state, style=lambda host: _STYLES.get(host.state, "")
            ),
            Column(header="SINCE", cell=lambda host: show_time(host.since, at, session.times), right=True),
            Column(header="VMS", cell=lambda host: str(host.vms), right=True),
            Column(
                header="VCPU", cell=lambda host: f"{host.promised.vcpus:g}/{host.total.vcpus:g}", right=True
            ),
            Column(
                header="MEM",
                cell=lambda h: f"{show_mib(h.promised.memory)}/{show_mib(h.total.memory)}",
                right=True,
            ),
            Column(
                header="DISK",
                cell=lambda h: f"{show_gib(h.promised.local_gib)}/{show_gib(h.total.local_gib)}",
                right=True,
                wide=True,
            ),
            Column(header="ACCEL", cell=lambda host: host.facts.accel if host.facts else "-"),
            Column(header="LIBVIRT", cell=lambda host: host.facts.libvirt if host.facts else "-", wide=True),
            Column(header="QEMU", cell=lambda host: host.facts.qemu if host.facts else "-", wide=True),
            Column(header="LABELS", cell=lambda host: show_labels(host.labels), wide=True),
        ]

    return columns


@verb(
    "list",
    examples=(
        "vmorch host list",
        "vmorch host list --state unreachable",
        "vmorch host list -l rack=b2 -o wide -w",
    ),
    help="List hosts, all or those whose name matches PATTERN. Capacity is promised/total.",
)
@click.argument("pattern", required=False)
@click.option(
    "--state", metavar="STATE", cls=SectionOption, section="Selection", help="Only those in this state."
)
@list_options(diff=True)
@click.pass_obj
def list_hosts(
    session: Session, /, pattern: str | None, no_headers: bool, watch: bool, **selection: Any
) -> None:
    view = View(
        path="/v1/hosts", shape=Host, columns=_columns(session), name=lambda host: host.name, noun="host"
    )
    show_list(session, view, query_of({"name": pattern, **selection}), headers=not no_headers, watch=watch)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "hosts", incomplete)


_host_argument = click.argument("name", metavar="HOST", shell_complete=_complete)


@verb(
    "describe",
    examples=("vmorch host describe hv-01", "vmorch host describe hv-01 -o yaml"),
    help="Everything about a host: capacity, facts, its VMs, its last events.",
)
@_host_argument
@past_option
@click.pass_obj
@compares("host", "name")
def describe(session: Session, /, name: str) -> None:
    answer = session.client.get(f"/v1/hosts/{quote(name)}")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Single[Host]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    at, paint = now(), session.terminal.paint
    text = [
        f"Name {found.name}   State {paint(_STYLES.get(found.state, ''), found.state)}   Version {found.version}"
    ]
    text += pairs(_facts(found, at, session), "  ")
    text.append("Capacity")
    text += [f"  {line}" for line in lines(_CAPACITY, _capacity(found))]
    vms = [vm for page in session.client.pages("/v1/vms", {"host": found.name}, VmRow) for vm in page.items]
    if vms:
        text.append("VMs")
        text += [f"  {line}" for line in lines(_VMS, vms, headers=False)]
    if found.unmanaged:
        text.append("Domains that vmorch did not make; it leaves them alone")
        text += [f"  {each}" for each in found.unmanaged]
    events = last_events(session.client, f"host/{found.id}", 8)
    if events:
        text.append("Events")
        text += [
            f"  {line}"
            for line in lines(columns_of_events(session, at, subject=False), events, headers=False)
        ]
    session.terminal.out("\n".join(text))


def _facts(found: Host, at: datetime, session: Session) -> list[tuple[str, str]]:
    rows = [
        ("Id", found.id),
        (
            "Agent",
            f"{found.agent} for {show_time(found.since, at, session.times)}" if found.since else found.agent,
        ),
        ("Labels", show_labels(found.labels)),
    ]
    if found.drain is not None:
        rows.append(("Drain", f"{found.drain} is under way"))
    if found.maintenance is not None:
        rows.append(("Maintenance", f"{found.maintenance} is under way"))
    if found.cordoned is not None:
        rows.append(("Cordoned", found.cordoned or "no reason given"))
    if found.facts is not None:
        facts = found.facts
        rows += [
            ("Hostname", facts.hostname),
            ("Accel", facts.accel),
            (
                "Versions",
                f"libvirt {facts.libvirt or '-'}, qemu {facts.qemu or '-'}, agent {facts.agent or '-'}",
            ),
            ("Networks", ", ".join(facts.networks) or "-"),
        ]
    if found.certificate is not None:
        rows.append(("Certificate", _certificate(found.certificate, at, session)))
    return rows


def _certificate(certificate: Certificate, at: datetime, session: Session) -> str:
    names, left = ", ".join(certificate.names), (certificate.expires - at).total_seconds()
    ends = f"{certificate.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if left <= 0:
        return f"{names}, {session.terminal.paint('bad', f'expired {ends}')}"
    return f"{names}, expires in {show_seconds(left)} ({ends})"


_Amount = tuple[str, str, str, str]

_CAPACITY: list[Column[_Amount]] = [
    Column(header="", cell=lambda each: each[0]),
    Column(header="PROMISED", cell=lambda each: each[1], right=True),
    Column(header="TOTAL", cell=lambda each: each[2], right=True),
    Column(header="RATIO", cell=lambda each: each[3], right=True),
]


def _capacity(found: Host) -> list[_Amount]:
    promised, total, ratio = found.promised, found.total, found.overcommit
    return [
        ("vcpus", f"{promised.vcpus:g}", f"{total.vcpus:g}", f"{ratio.get('cpu', 1):g}"),
        ("memory", show_mib(promised.memory), show_mib(total.memory), f"{ratio.get('memory', 1):g}"),
        ("disk", show_gib(promised.local_gib), show_gib(total.local_gib), f"{ratio.get('disk', 1):g}"),
        ("shared", show_gib(promised.shared_gib), show_gib(total.shared_gib), f"{ratio.get('disk', 1):g}"),
    ]


_VMS: list[Column[VmRow]] = [
    Column(header="", cell=lambda vm: vm.name),
    Column(header="", cell=lambda vm: vm.state),
    Column(header="", cell=lambda vm: str(vm.vcpus), right=True),
    Column(header="", cell=lambda vm: show_mib(vm.memory), right=True),
]


@verb(
    "enroll",
    examples=("vmorch host enroll hv-04", "vmorch host enroll hv-04 -o json --query token"),
    help="Invite a host: make the one-time token that its agent enrols with. The token is shown only now.",
)
@click.argument("name")
@change_options(waits=False, plans=False)
@click.pass_obj
def enroll(session: Session, /, name: str) -> None:
    found = show_secret(session, "/v1/hosts", {"name": name})
    if found is None:
        return
    token = str(found["token"])
    if session.settings.output == "name" or session.terminal.quiet:
        session.terminal.out(token)
        return
    expires = str(found.get("expires", "-"))
    session.terminal.out("\n".join(pairs([("host", name), ("token", token), ("expires", expires)])))
    # a Unix socket is this machine's own; only the operator knows where hosts reach the API
    server = session.settings.api if session.settings.api.startswith("http") else "https://SERVER"
    session.terminal.note(
        f"hint: on {name}: vmorch-agent enroll {server} --token-file -   (then paste the token)"
    )


@verb(
    "cordon",
    examples=('vmorch host cordon hv-03 -m "CHG-2211 DIMM swap"',),
    help="Place no new VM on a host; those on it stay.",
)
@_host_argument
@change_options(waits=False, plans=False)
@click.pass_obj
def cordon(session: Session, /, name: str) -> None:
    reason = session.settings.reason
    record(
        session,
        f"/v1/hosts/{quote(name)}/cordon",
        {"reason": reason},
        "{name} is cordoned (event {position})",
    )


@verb("uncordon", examples=("vmorch host uncordon hv-03",), help="Place VMs on a host again.")
@_host_argument
@change_options(waits=False, plans=False)
@click.pass_obj
def uncordon(session: Session, /, name: str) -> None:
    record(session, f"/v1/hosts/{quote(name)}/uncordon", {}, "{name} takes VMs again (event {position})")


@verb(
    "label",
    examples=("vmorch host label hv-03 --set rack=b2 --remove old",),
    help="Set or remove a host's labels; placement goes by them.",
)
@_host_argument
@click.option("--set", "set_", type=PAIR, multiple=True, help="Set this label (repeatable).")
@click.option("--remove", multiple=True, metavar="KEY", help="Remove this label (repeatable).")
@change_options(waits=False, plans=False)
@click.pass_obj
def label(session: Session, /, name: str, set_: tuple[tuple[str, str], ...], remove: tuple[str, ...]) -> None:
    body = {"set": dict(set_), "remove": list(remove)}
    record(session, f"/v1/hosts/{quote(name)}/label", body, "{name} is labelled (event {position})")


@verb(
    "overcommit",
    examples=("vmorch host overcommit hv-03 --cpu 4", "vmorch host overcommit hv-03 --memory 1.2 --disk 2"),
    help="Set how much more than it has a host may promise, as ratios.",
)
@_host_argument
@click.option(
    "--cpu", type=click.FloatRange(0, 100, min_open=True), metavar="RATIO", help="Of vCPUs to CPUs."
)
@click.option("--memory", type=click.FloatRange(0, 100, min_open=True), metavar="RATIO", help="Of memory.")
@click.option("--disk", type=click.FloatRange(0, 100, min_open=True), metavar="RATIO", help="Of disk space.")
@change_options(waits=False, plans=False)
@click.pass_obj
def overcommit(session: Session, /, name: str, **ratios: float | None) -> None:
    body = {key: value for key, value in ratios.items() if value is not None}
    if not body:
        raise Problem("bad-request", "nothing to change", hint="give --cpu, --memory or --disk")
    record(session, f"/v1/hosts/{quote(name)}/overcommit", body, "{name} has these ratios (event {position})")


@verb(
    "retire",
    examples=("vmorch host retire hv-03", 'vmorch host retire hv-03 --lost -m "burnt down"'),
    help="Take a host out of the cluster for good.",
)
@_host_argument
@click.option("--lost", is_flag=True, help="It is gone for ever: give its VMs up with it. Needs --reason.")
@change_options(confirms=True, waits=False, plans=False)
@click.pass_obj
def retire(session: Session, /, name: str, lost: bool, yes: bool) -> None:
    session.demand_reason()
    what = f"retire {name}: it can come back only as a new host"
    if lost:
        what = f"give {name} up as lost, and every VM that stands on it"
    session.confirm(what, name, yes=yes, asked_for="host's name")
    body = {"lost": True} if lost else {}
    record(session, f"/v1/hosts/{quote(name)}/retire", body, "{name} is retired (event {position})")
