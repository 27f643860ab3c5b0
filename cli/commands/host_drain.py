"""`vmorch host drain` and `vmorch host activate`."""

from typing import Any

import click

from cli.client import accepted, decode
from cli.drain_shapes import Drain
from cli.drain_text import plan_lines
from cli.drains import DIFFERENCES, check, fetch, see_through
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Host, Single
from cli.transport import quote
from cli.verbs import DURATION, change_options, past_option, verb

ON_BLOCKED = click.Choice(("abort", "skip", "stop"))


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "hosts", incomplete)


@verb(
    "drain",
    examples=(
        "vmorch host drain hv-03 --plan",
        "vmorch host drain hv-03 --dry-run --as-of -2h",
        'vmorch host drain hv-03 -m "CHG-2211 DIMM swap"',
        "vmorch host drain hv-03 hv-04 --on-blocked skip --deadline 2h",
    ),
    help="Move every VM away from hosts, planned together; they take no new ones from the start. Nothing begins if"
    " a VM cannot be moved, unless --on-blocked says what shall become of it: with skip the rest moves, with stop it"
    " is shut down, with abort even a move that fails later ends the drain. Exit 9: some VMs did not go.",
)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True, shell_complete=complete)
@click.option("--plan", "only_plan", is_flag=True, help="Store the plan and show it, begin nothing (exit 10).")
@click.option("--deadline", type=DURATION, help="End it after this time in any case.")
@click.option("--max-parallel", type=click.IntRange(1, 1000), metavar="N", help="At most N VMs at once.")
@click.option("--on-blocked", type=ON_BLOCKED, help="What becomes of VMs that cannot be moved.")
@click.option("--no-copy-disks", is_flag=True, help="VMs on local disks block, instead of taking them along.")
@click.option("--dry-run", is_flag=True, help="Show the plan and store nothing (exit 10); with --as-of, of then.")
@past_option
@change_options(plans=False)
@click.pass_obj
def drain(
    session: Session,
    /,
    hosts: tuple[str, ...],
    only_plan: bool,
    dry_run: bool,
    detach: bool,
    timeout: float | None,
    **given: Any,
) -> None:
    # what would have been planned then cannot be kept to be applied now
    foreseen = dry_run or (only_plan and session.flags.as_of is not None)
    if not (only_plan or foreseen):
        session.demand_reason()
    body: dict[str, Any] = {"hosts": chosen(session, hosts), "start": not (only_plan or foreseen)}
    for field in ("deadline", "max_parallel", "on_blocked"):
        if given[field] is not None:
            body[field] = given[field]
    if given["no_copy_disks"]:
        body["copy_disks"] = False
    answer = session.client.change("/v1/drains", body, request_id=session.request_id, dry_run=foreseen)
    if foreseen:
        raise SystemExit(_show_foreseen(session, answer.body))
    id = accepted(answer).subject
    if only_plan:
        raise SystemExit(show_plan(session, id))
    if detach:
        show_begun(session, id, answer.body)
        return
    check(see_through(session, id, timeout=timeout, title=f"drain {id}  {', '.join(body['hosts'])}"))


@verb(
    "activate",
    examples=("vmorch host activate hv-03", "vmorch host activate hv-03 --bring-back"),
    help="Return a host to service: it takes VMs again. Nothing moves back by itself; --bring-back moves those back"
    " that its last drain moved away and that are still where it left them.",
)
@click.argument("name", metavar="HOST", shell_complete=complete)
@click.option("--bring-back", is_flag=True, help="Move its VMs back.")
@change_options(plans=False)
@click.pass_obj
def activate(session: Session, /, name: str, bring_back: bool, detach: bool, timeout: float | None) -> None:
    session.demand_reason()
    answer = session.client.change(
        f"/v1/hosts/{quote(name)}/activate", {"bring_back": bring_back}, request_id=session.request_id
    )
    receipt = accepted(answer)
    if receipt.name != "drain":
        if structured(session):
            show_document(session, answer.body)
        elif not session.terminal.quiet:
            session.terminal.out(f"{name} takes VMs again (event {receipt.position})")
        return
    if detach:
        show_begun(session, receipt.subject, answer.body)
        return
    check(see_through(session, receipt.subject, timeout=timeout, title=f"drain {receipt.subject}  back to {name}"))


def _show_foreseen(session: Session, body: bytes) -> int:
    """A plan that nobody keeps. Returns the exit status."""
    found = decode(body, Single[Drain]).item
    if structured(session):
        show_document(session, body)
    elif session.settings.output == "name":
        session.terminal.out("\n".join(line.name for line in found.lines))
    else:
        session.terminal.out("\n".join(plan_lines(found, session.terminal.paint)))
        session.terminal.note("Nothing was stored and nothing begun.")
    return DIFFERENCES if found.lines else 0


def show_plan(session: Session, id: str) -> int:
    """A stored plan and how to carry it out. Returns the exit status."""
    body, found = fetch(session, id)
    if structured(session):
        show_document(session, body)
    elif session.settings.output == "name":
        session.terminal.out(found.id)
    else:
        session.terminal.out("\n".join(plan_lines(found, session.terminal.paint)))
        blocked = any(line.state == "blocked" for line in found.lines)
        skip = " --on-blocked skip" if blocked and found.on_blocked in ("refuse", "abort") else ""
        session.terminal.note(f"Nothing was begun. Apply: vmorch plan apply {found.id}{skip}")
    return DIFFERENCES if found.lines else 0


def show_begun(session: Session, id: str, body: bytes) -> None:
    """What somebody is told who does not wait."""
    if structured(session):
        show_document(session, body)
        return
    session.terminal.out(id if session.settings.output == "name" else f"drain {id} has begun")
    session.terminal.note(f"hint: vmorch drain watch {id}")


def chosen(session: Session, patterns: tuple[str, ...]) -> list[str]:
    """The hosts meant by names and globs, each once. Raises Problem `no-such-host` for a glob that matches none."""
    meant: dict[str, None] = {}
    for pattern in patterns:
        if not any(letter in pattern for letter in "*?["):
            meant[pattern] = None
            continue
        pages = session.client.pages("/v1/hosts", {"name": pattern}, Host)
        found = [host.name for page in pages for host in page.items]
        if not found:
            raise Problem("no-such-host", f"no host matches {pattern!r}", hint="vmorch host list")
        meant.update(dict.fromkeys(found))
    return list(meant)
