"""Bring a VM back to a snapshot. Written by hand: what it would do is shown before it is asked for.

Must not import what is needed only once the API was asked.
"""

from typing import Any

import click

from cli.changes import Request, Waiting, carry_out
from cli.completion import complete_snapshot, complete_vm
from cli.session import Session
from cli.transport import quote
from cli.verbs import change_options, verb


@verb(
    "rollback",
    examples=(
        "vmorch vm rollback db-1 --to pre-upgrade",
        "vmorch vm rollback db-1 --to pre-upgrade --dry-run",
        "vmorch vm rollback db-1 --to pre-upgrade --config-too -y -m CHG-2211",
    ),
    help="Bring a VM back to a snapshot: its disks, and its memory if the snapshot has it. What the VM is until then is"
    " kept in a snapshot first. Shows what is lost and what is kept, and asks before it begins.",
)
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.option("--to", required=True, metavar="SNAPSHOT", help="The snapshot.", shell_complete=complete_snapshot)
@click.option("--config-too", is_flag=True, help="Also the vCPUs, memory, disks and cards that it had.")
@click.option("--no-safety-snapshot", is_flag=True, help="Do not keep what it is now: that is lost.")
@change_options(confirms=True)
@click.pass_obj
def rollback(
    session: Session,
    /,
    vm: str,
    to: str,
    config_too: bool,
    no_safety_snapshot: bool,
    dry_run: bool,
    detach: bool,
    timeout: float | None,
    yes: bool,
) -> None:
    body: dict[str, Any] = {"to": to}
    if config_too:
        body["config_too"] = True
    if no_safety_snapshot:
        body["safety_snapshot"] = False
    request = Request(
        label="vm.rollback",
        name=vm,
        path=f"/v1/vms/{quote(vm)}/rollback",
        body=body,
        request_id=session.request_id,
    )
    if dry_run:
        from cli.plans import show_plan

        raise SystemExit(show_plan(session, request))
    session.demand_reason()
    # who says yes beforehand may also repeat an earlier request, of which there is nothing to foresee
    if not yes:
        _confirm(session, request, vm, to)
    carry_out(session, request, Waiting(detach=detach, timeout=timeout))


def _confirm(session: Session, request: Request, vm: str, to: str) -> None:
    if not session.terminal.can_ask:
        session.confirm(f"rollback of {vm} to {to}", vm, yes=False)
    from cli.client import planned
    from cli.listing import now
    from cli.shapes import SnapshotDetail
    from cli.snapshots import about, prospect_rows
    from cli.table import pairs

    found = session.client.single(f"/v1/vms/{quote(vm)}/snapshots/{quote(to)}", SnapshotDetail).item
    plan = planned(
        session.client.change(request.path, request.body, request_id=request.request_id, dry_run=True)
    )
    what = [f"Rollback to {about(found, now(), session.times)}"]
    if plan.rollback is not None:
        what += pairs(prospect_rows(plan.rollback), "  ")
    session.confirm("\n".join(what), found.vm_name, yes=False, asked_for="VM's name")
