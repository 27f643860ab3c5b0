"""Look at VMs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from cli.events import columns_of_events, last_events
from cli.evidence import evidence
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.session import Session
from cli.shapes import Frozen, Single, Vm, VmRow
from cli.snapshots import summary
from cli.table import Column, lines, pairs
from cli.transport import quote
from cli.units import show_gib, show_labels, show_mib, show_seconds, show_time
from cli.verbs import SectionOption, compares, past_option, verb

EVENTS_SHOWN = 8

_STYLES = {
    "running": "good",
    "off": "dim",
    "crashed": "bad",
    "unknown": "warn",
    "paused": "warn",
    "absent": "bad",
}


def _columns(session: Session) -> Any:
    def columns(at: datetime) -> Sequence[Column[VmRow]]:
        return [
            Column(header="NAME", cell=lambda vm: vm.name),
            Column(header="STATE", cell=lambda vm: vm.state, style=lambda vm: _STYLES.get(vm.state, "warn")),
            Column(header="HOST", cell=lambda vm: vm.host or "-"),
            Column(header="VCPU", cell=lambda vm: str(vm.vcpus), right=True),
            Column(header="MEM", cell=lambda vm: show_mib(vm.memory), right=True),
            Column(header="DISK", cell=lambda vm: show_gib(vm.disk), right=True, wide=True),
            Column(header="IP", cell=lambda vm: vm.addresses[0] if vm.addresses else "-"),
            Column(header="IMAGE", cell=lambda vm: vm.image or "-", wide=True),
            Column(header="LABELS", cell=lambda vm: show_labels(vm.labels), wide=True),
            Column(header="AGE", cell=lambda vm: show_time(vm.created_at, at, session.times), right=True),
        ]

    return columns


def _remark(rows: Sequence[VmRow]) -> str:
    lost = [vm.name for vm in rows if not vm.host_reachable and vm.host]
    if not lost:
        return ""
    return f"{len(lost)} on unreachable hosts, their state is not known now: vmorch host list --state unreachable"


@verb(
    "list",
    examples=(
        "vmorch vm list",
        "vmorch vm list 'web-*' -l tier=gold -o wide",
        "vmorch vm list --host hv-02 --state running -o json",
        "vmorch vm list --as-of -3d",
        "vmorch vm list -w",
    ),
    help="List VMs, all or those whose name matches PATTERN.",
)
@click.argument("pattern", required=False)
@click.option(
    "--host", metavar="NAME", cls=SectionOption, section="Selection", help="Only those on this host."
)
@click.option(
    "--state", metavar="STATE", cls=SectionOption, section="Selection", help="Only those in this state."
)
@list_options(diff=True)
@click.pass_obj
def list_vms(
    session: Session, /, pattern: str | None, no_headers: bool, watch: bool, **selection: Any
) -> None:
    view = View(
        path="/v1/vms",
        shape=VmRow,
        columns=_columns(session),
        name=lambda vm: vm.name,
        noun="VM",
        after=_remark,
    )
    query = query_of({"name": pattern, **selection})
    show_list(session, view, query, headers=not no_headers, watch=watch)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "vms", incomplete)


@verb(
    "describe",
    examples=(
        "vmorch vm describe web-1",
        "vmorch vm describe web-1 --as-of @48204",
        "vmorch vm describe web-1 -o json --query item.spec.disks",
    ),
    help="Everything about a VM: facts, conditions, disks, networks, what is pending, its last events.",
)
@click.argument("vm", shell_complete=_complete)
@past_option
@click.pass_obj
@compares("vm", "vm")
def describe(session: Session, /, vm: str) -> None:
    answer = session.client.get(f"/v1/vms/{quote(vm)}")
    if structured(session):
        show_document(session, answer.body)
        return
    from cli.client import decode

    found = decode(answer.body, Single[Vm]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    at = now()
    events = last_events(session.client, f"vm/{found.id}", EVENTS_SHOWN)
    text = describe_lines(found, at, session)
    if events:
        text.append("Events")
        columns = columns_of_events(session, at, subject=False)
        text += [f"  {line}" for line in lines(columns, events, headers=False, paint=session.terminal.paint)]
    session.terminal.out("\n".join(text))


def describe_lines(vm: Vm, at: datetime, session: Session) -> list[str]:
    """A VM for reading, without its events."""
    paint = session.terminal.paint
    state = paint(_STYLES.get(vm.state, "warn"), vm.state) + (
        f" ({vm.power_reason})" if vm.power_reason else ""
    )
    text = [f"Name {vm.name}   State {state}   Host {vm.host or '-'}   Version {vm.version}"]
    facts = [
        ("Id", vm.id),
        ("Image", vm.image or "-"),
        (
            "vCPUs",
            f"{vm.vcpus}" + (f", up to {vm.spec.max_vcpus} live" if vm.spec.max_vcpus > vm.vcpus else ""),
        ),
        (
            "Memory",
            show_mib(vm.memory)
            + (f", up to {show_mib(vm.spec.max_memory)} live" if vm.spec.max_memory > vm.memory else ""),
        ),
        ("Addresses", ", ".join(vm.addresses) or "-"),
        ("Labels", show_labels(vm.labels)),
        ("Eviction", vm.eviction),
        ("Snapshots", summary(vm, at, session.times)),
        ("Created", show_time(vm.created_at, at, session.times)),
    ]
    if vm.operation:
        facts.append(("Operation", f"{vm.operation}  (vmorch op watch {vm.operation})"))
    text += pairs(facts, "  ")
    text.append("Conditions")
    text += [
        f"  {line}" for line in lines(_CONDITIONS, _conditions(vm, at, session), headers=False, paint=paint)
    ]
    text.append("Disks")
    text += pairs(
        [
            (disk.name, f"{show_gib(disk.size)}  {disk.storage}{_origin(disk.image)}")
            for disk in vm.spec.disks
        ],
        "  ",
    )
    if vm.spec.nics:
        text.append("Networks")
        text += pairs(
            [(nic.mac, _network(nic.network, nic.address, nic.gateway)) for nic in vm.spec.nics], "  "
        )
    if vm.frozen:
        text.append("Nobody can tell where it is after its migration")
        text += pairs(_evidence(vm, vm.frozen, at, session), "  ")
    if vm.traces:
        text.append(f"Something of it may be left on {', '.join(vm.traces)}; it is cleared when the host answers")
    if vm.pending:
        text.append("Pending, in force from the next start")
        text += pairs(
            [
                (name, f"{_figure(name, p.live)} -> {_figure(name, p.asked)}")
                for name, p in vm.pending.items()
            ],
            "  ",
        )
    if vm.drift:
        text.append("Differs from the record")
        text += pairs(
            [(each.field, f"recorded {each.recorded}, seen {each.seen}") for each in vm.drift], "  "
        )
    return text


def _evidence(vm: Vm, frozen: Frozen, at: datetime, session: Session) -> list[tuple[str, str]]:
    return [
        *evidence(frozen),
        ("Since", show_time(frozen.since, at, session.times)),
        ("Way out", "it settles when both hosts answer; or, once you are sure that it runs nowhere else:"),
        ("", f'vmorch vm resolve {vm.name} {frozen.source.host} -m "why"  (or {frozen.destination.host})'),
    ]


_Condition = tuple[str, bool, str]

_CONDITIONS: list[Column[_Condition]] = [
    Column(header="", cell=lambda each: each[0]),
    Column(header="", cell=lambda each: str(each[1]), style=lambda each: "good" if each[1] else "warn"),
    Column(header="", cell=lambda each: each[2]),
]


def _conditions(vm: Vm, at: datetime, session: Session) -> list[_Condition]:
    seen = "never" if vm.observed_at is None else show_time(vm.observed_at, at, session.times)
    ago = " ago" if vm.observed_at is not None and session.times == "rel" else ""
    check = {"none": "no check", "agent": "guest agent", "tcp": f"port {vm.spec.ready.port} accepts"}.get(
        vm.spec.ready.by, f"GET :{vm.spec.ready.port}{vm.spec.ready.path}"
    )
    limit = show_seconds(vm.spec.ready.within)
    return [
        (
            "Running",
            vm.power == "running",
            f"power {vm.power or 'unknown'}; ready when: {check}, within {limit}",
        ),
        ("Seen", vm.host_reachable, f"last observed {seen}{ago}" if vm.host else "on no host"),
        ("InSync", not vm.pending and not vm.drift, _sync(vm)),
    ]


def _sync(vm: Vm) -> str:
    reasons = [
        *(f"{name} waits for the next start" for name in vm.pending),
        *(f"{each.field} drifted" for each in vm.drift),
    ]
    return "; ".join(reasons) or "as recorded"


def _origin(image: dict[str, Any] | None) -> str:
    return f"  on sha256:{str(image.get('digest', ''))[:12]}" if image else ""


def _network(network: str | None, address: str | None, gateway: str | None) -> str:
    return f"{network or 'host default'}  {address or 'dhcp'}" + (f"  via {gateway}" if gateway else "")


def _figure(name: str, value: int) -> str:
    return show_mib(value) if "memory" in name else str(value)
