"""Take and delete snapshots, and say by which schedule that happens: the derived verbs, asked about in their own way.

Must not import what is needed only once the API was asked.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from cli.completion import complete_snapshot
from cli.derived import Body, command_for
from cli.session import Session
from cli.verb_data import VerbData, load


def _data(verb: str) -> VerbData:
    found = load(verb)
    assert found is not None
    return found


def _confirm(session: Session, data: VerbData, vms: list[str], body: Body) -> None:
    name = body["snapshot"]
    if len(vms) > 1:
        session.confirm(
            f"delete snapshot {name} of {', '.join(vms)}", str(len(vms)), yes=False, asked_for="number of VMs"
        )
        return
    if not session.terminal.can_ask:
        session.confirm(f"delete snapshot {vms[0]}/{name}", name, yes=False)
    from cli.listing import now
    from cli.shapes import SnapshotDetail
    from cli.snapshots import about
    from cli.transport import quote

    found = session.client.single(f"/v1/vms/{quote(vms[0])}/snapshots/{quote(name)}", SnapshotDetail).item
    what = [f"delete snapshot {about(found, now(), session.times)}; the VM stays as it is"]
    if found.descendants and body.get("with_children"):
        what.append(f"  goes too, as it came from it: {', '.join(found.descendants)}")
    elif found.children:
        what.append(f"  stays, though it came from it: {', '.join(found.children)}")
    session.confirm("\n".join(what), found.name, yes=False, asked_for="snapshot's name")


def _show_policies(session: Session, vms: Sequence[str]) -> None:
    import msgspec

    from cli.output import show_document, structured
    from cli.shapes import Vm
    from cli.snapshots import show_schedule
    from cli.table import pairs
    from cli.transport import quote

    found = [session.client.single(f"/v1/vms/{quote(vm)}", Vm).item for vm in vms]
    if structured(session):
        items = [{"vm": vm.name, "schedule": vm.schedule} for vm in found]
        show_document(
            session, msgspec.json.encode({"apiVersion": "v1", "kind": "SnapshotPolicyList", "items": items})
        )
    elif session.settings.output == "name":
        session.terminal.out("\n".join(vm.name for vm in found))
    else:
        session.terminal.out("\n".join(pairs([(vm.name, show_schedule(vm.schedule)) for vm in found])))


create = command_for(_data("snapshot"))
delete = command_for(_data("delete-snapshot"), confirm=_confirm, complete={"snapshot": complete_snapshot})
_schedule = _data("set-snapshot-policy")
policy = command_for(
    replace(_schedule, help=f"{_schedule.help} Without any of its options it shows the schedule in force."),
    bare=_show_policies,
)
