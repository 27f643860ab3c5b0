"""Commands about the cluster as a whole: status, doctor, projection, whoami, api."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.changing import record
from cli.client import decode
from cli.events import columns_of_events, last_events
from cli.listing import now
from cli.output import show_document, structured
from cli.problems import Problem, fact_lines
from cli.session import Session
from cli.shapes import Cluster, Listing, Single
from cli.table import Column, lines, pairs
from cli.verbs import Entry, Group, change_options, past_option, verb

_HERE = "cli.commands.cluster"
_LIMIT = click.IntRange(1, 1000)


class Status(msgspec.Struct, frozen=True):
    """The cluster at a glance."""

    cluster: str = "-"
    version: str = "-"
    head: int | None = None
    hosts: dict[str, int] = {}
    vms: dict[str, int] = {}
    operations: int = 0
    clearMigration: bool = False
    projectionLag: int | None = None
    postgres: bool = True
    nats: bool | None = None


cluster = Group(
    "cluster",
    {
        "describe": Entry(f"{_HERE}:describe", "What holds for all hosts and VMs"),
        "set": Entry(f"{_HERE}:set_policy", "Change it"),
    },
    help="The cluster's policy: what holds for all hosts and VMs.",
    foreign={
        "get": "vmorch cluster describe",
        "show": "vmorch cluster describe",
        "info": "vmorch cluster describe",
        "status": "vmorch status",
        "edit": "vmorch cluster set",
        "update": "vmorch cluster set",
    },
    examples=("vmorch cluster describe", "vmorch cluster set --migrations-out 2"),
)


@verb(
    "describe",
    examples=("vmorch cluster describe", "vmorch cluster describe -o json --query item.policy"),
    help="What holds for all hosts and VMs, and who last changed it.",
)
@past_option
@click.pass_obj
def describe(session: Session, /) -> None:
    answer = session.client.get("/v1/cluster")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Single[Cluster]).item
    policy = found.policy
    clear = session.terminal.paint("warn", "allowed where a host has no certificate")
    limits = f"{policy.migrations} at once, {policy.migrations_out} from and {policy.migrations_in} to one host"
    rows = [
        ("Clear migration", clear if policy.clear_migration else "refused: guests travel encrypted"),
        ("Migrations", limits),
    ]
    text = ["Policy", *pairs(rows, "  ")]
    events = last_events(session.client, "cluster/policy", 8)
    if events:
        shown = lines(columns_of_events(session, now(), subject=False), events, headers=False)
        text += ["Events", *(f"  {line}" for line in shown)]
    session.terminal.out("\n".join(text))


@verb(
    "set",
    examples=(
        "vmorch cluster set --migrations-out 2 --migrations 16",
        'vmorch cluster set --clear-migration -m "hv-07 is old until Friday"',
        "vmorch cluster set --no-clear-migration",
    ),
    help="Change what holds for all hosts and VMs; what is not named stays. Needs the role admin.",
)
@click.option(
    "--clear-migration/--no-clear-migration",
    default=None,
    help="Let guests travel unencrypted where a host has no certificate. Needs --reason.",
)
@click.option("--migrations-out", type=_LIMIT, metavar="N", help="Guests that leave one host at once.")
@click.option("--migrations-in", type=_LIMIT, metavar="N", help="Guests that come to one host at once.")
@click.option("--migrations", type=_LIMIT, metavar="N", help="Guests that travel in the cluster at once.")
@change_options(waits=False, plans=False)
@click.pass_obj
def set_policy(session: Session, /, **wanted: bool | int | None) -> None:
    body = {key: value for key, value in wanted.items() if value is not None}
    if not body:
        raise Problem("bad-request", "nothing to change", hint="vmorch cluster set --help")
    record(session, "/v1/cluster", body, "the policy is changed (event {position})", method="PATCH")


class Check(msgspec.Struct, frozen=True):
    """One finding of the doctor."""

    check: str
    state: str
    detail: str = ""
    hint: str = ""


class Projection(msgspec.Struct, frozen=True):
    """The state of what follows the log."""

    name: str
    position: int = 0
    head: int | None = None
    poisoned: Any = None
    trouble: str = ""


@verb(
    "status",
    examples=("vmorch status", "vmorch status -o json --query vms.running"),
    help="The cluster at a glance.",
)
@past_option
@click.pass_obj
def status(session: Session, /) -> None:
    answer = session.client.get("/v1/status")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Status)
    paint = session.terminal.paint
    log = paint("bad", "the log is away") if found.head is None else f"log {found.head:,}"
    lag = "-" if found.projectionLag is None else f"{found.projectionLag:,} events"
    bus = {True: "connected", False: paint("bad", "not connected"), None: "none"}[found.nats]
    clear = ["policy  " + paint("warn", "guests may travel unencrypted")] if found.clearMigration else []
    session.terminal.out(
        "\n".join(
            [
                f"cluster {found.cluster}   version {found.version}   {log}   projection lag {lag}   nats {bus}",
                f"hosts   {_counts(found.hosts)}",
                f"VMs     {_counts(found.vms)}",
                f"ops     {found.operations} active",
                *clear,
            ]
        )
    )


def _counts(counts: dict[str, int]) -> str:
    if not counts:
        return "none"
    parts = ", ".join(
        f"{count} {state}" for state, count in sorted(counts.items(), key=lambda each: -each[1])
    )
    return f"{sum(counts.values())}: {parts}"


_STYLES = {"ok": "good", "warn": "warn", "fail": "bad"}

_CHECKS: list[Column[Check]] = [
    Column(header="", cell=lambda each: each.state, style=lambda each: _STYLES.get(each.state, "")),
    Column(header="", cell=lambda each: each.check),
    Column(header="", cell=lambda each: each.detail),
]


@verb(
    "doctor",
    examples=("vmorch doctor", "vmorch doctor -o json"),
    help="Check every part of the cluster and say how to mend it. Exits 1 if something fails.",
)
@click.pass_obj
def doctor(session: Session, /) -> None:
    answer = session.client.get("/v1/doctor")
    checks = decode(answer.body, Listing[Check]).items
    failed = any(check.state == "fail" for check in checks)
    if structured(session):
        show_document(session, answer.body)
    else:
        everything = [Check("api", "ok", session.settings.api), *checks]
        text = lines(_CHECKS, everything, headers=False, paint=session.terminal.paint)
        for check, line in zip(everything, text, strict=True):
            session.terminal.out(line)
            if check.hint and check.state != "ok":
                session.terminal.out(f"      hint: {check.hint}")
    if failed:
        raise SystemExit(1)


projection = Group(
    "projection",
    {
        "status": Entry(f"{_HERE}:projection_status", "How far each read model is"),
        "rebuild": Entry(f"{_HERE}:rebuild", "Make all read models anew from the log"),
    },
    help="Read models: made from the log, and made again from it at will.",
    foreign={"list": "vmorch projection status", "reset": "vmorch projection rebuild"},
    examples=("vmorch projection status",),
)


def _lag(each: Projection) -> str:
    return "-" if each.head is None else str(max(each.head - each.position, 0))


_PROJECTIONS: list[Column[Projection]] = [
    Column(header="NAME", cell=lambda each: each.name),
    Column(header="POSITION", cell=lambda each: str(each.position), right=True),
    Column(header="LAG", cell=_lag, right=True),
    Column(
        header="UNREADABLE",
        cell=lambda each: str(len(each.poisoned)) if each.poisoned else "-",
        style=lambda each: "bad" if each.poisoned else "",
    ),
]


@verb("status", examples=("vmorch projection status",), help="How far the read models and the published log are.")
@click.pass_obj
def projection_status(session: Session, /) -> None:
    answer = session.client.get("/v1/projections")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Listing[Projection]).items
    session.terminal.out("\n".join(lines(_PROJECTIONS, found, paint=session.terminal.paint)))
    for each in found:
        if each.trouble:
            session.terminal.out(f"{each.name} stands still: {each.trouble}")
        if each.poisoned:
            session.terminal.out(
                "\n".join([f"{each.name} cannot read:", *fact_lines(_as_facts(each.poisoned))])
            )


def _as_facts(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"streams": value}


@verb(
    "rebuild",
    examples=("vmorch projection rebuild",),
    help="Make all read models anew from the log. Reads go on meanwhile.",
)
@change_options(waits=False, plans=False)
@click.pass_obj
def rebuild(session: Session, /) -> None:
    session.demand_reason()
    # the whole log is read again before the answer comes
    answer = session.client.change("/v1/projections/rebuild", {}, request_id=session.request_id, limit=3600)
    if structured(session):
        show_document(session, answer.body)
    else:
        document: dict[str, Any] = msgspec.json.decode(answer.body)
        rest = {
            key: value for key, value in document.items() if key not in ("apiVersion", "kind", "projections")
        }
        session.terminal.out("\n".join(["The read models are made anew.", *fact_lines(rest)]))


class Identity(msgspec.Struct, frozen=True):
    """Whose token it is."""

    name: str
    role: str = ""
    cluster: str = "-"
    expires: Any = None


@verb("whoami", examples=("vmorch whoami",), help="Whose token is in use, what it may do, and where.")
@click.pass_obj
def whoami(session: Session, /) -> None:
    answer = session.client.get("/v1/whoami")
    if structured(session):
        show_document(session, answer.body)
        return
    found = decode(answer.body, Identity)
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    until = f", until {found.expires}" if found.expires else ""
    session.terminal.out(
        f"{found.name} ({found.role}{until}) at cluster {found.cluster}, {session.settings.api}"
    )


@verb(
    "api",
    examples=(
        "vmorch api GET /v1/vms?state=running",
        "vmorch api POST /v1/vms/web-1/stop --data '{\"force\": true}'",
        "vmorch api GET /v1/events/tail",
    ),
    help="Send a request to the API as it is, and print the answer as it comes. Event streams are followed.",
)
@click.argument("method", type=click.Choice(("GET", "POST", "PUT", "PATCH", "DELETE"), case_sensitive=False))
@click.argument("path")
@click.option("--data", metavar="JSON|@FILE|-", help="The body.")
@change_options(waits=False, plans=False)
@click.pass_obj
def api(session: Session, /, method: str, path: str, data: str | None) -> None:
    if method != "GET":
        session.demand_reason()
    body = None if data is None else _body(data)
    headers = {} if method == "GET" else session.client.change_headers(session.request_id)
    transport = session.client.transport
    if method == "GET" and path.partition("?")[0].endswith(("/tail", "/watch")):
        for event in transport.stream(method, path):
            session.terminal.out(event.data)
            sys.stdout.flush()
        return
    answer = transport.request(
        method, path if path.startswith("/") else f"/{path}", body=body, headers=headers
    )
    if answer.content_type == "application/json":
        show_document(session, answer.body)
    else:
        session.terminal.out_bytes(answer.body)


def _body(data: str) -> bytes:
    if data == "-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise Problem("bad-request", f"--data: {data[1:]}: {error.strerror}") from error
    return data.encode()
