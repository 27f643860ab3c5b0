"""Backups: looked at, restored to a new VM, verified, deleted. Taking one is a verb on a VM."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from starlette.responses import Response

from vmorch.core.aggregates.backup import Backup
from vmorch.core.backup_resources import backup_detail, backup_resource
from vmorch.core.fleet import Fleet
from vmorch.core.ids import BackupId, VmId
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Handler
from vmorch.edge.routes.reading import basis, dry, state
from vmorch.edge.routes.vms import plan_document
from vmorch.engine.handle import BackupCommand

VERBS: dict[str, type[BackupCommand]] = {"restore": RestoreBackup, "verify": ProveBackup, "delete": DeleteBackup}
"""What can be done with a backup that is there."""


async def list_backups(call: Call) -> Response:
    fleet, given = await state(call), call.request.query_params
    name, vm = given.get("name", "*"), given.get("vm")
    found = [
        each
        for each in fleet.backups.values()
        if fnmatchcase(each.name, name) and (vm is None or vm in (each.vm, each.vm_name))
    ]
    return _listing(call, fleet, found)


async def list_of_vm(call: Call) -> Response:
    fleet, ref = await state(call), call.path("ref")
    # the id of a VM that was deleted still names its backups
    known = ref if any(each.vm == ref for each in fleet.backups.values()) else fleet.find_vm(ref).id
    return _listing(call, fleet, [each for each in fleet.backups.values() if each.vm == VmId(known)])


async def show_backup(call: Call) -> Response:
    fleet = await state(call)
    backup = fleet.backups.get(BackupId(call.path("ref"))) or fleet.find_backup(call.path("ref"))
    return answers.single("Backup", backup_detail(fleet, backup), answers.as_of(fleet))


def on_backup(command_type: type[BackupCommand]) -> Handler:
    """What answers the route of one verb."""

    async def answer(call: Call) -> Response:
        command = await requests.body(call.request, command_type)
        control, ref = call.services.control, call.path("ref")
        if dry(call):
            fleet = await basis(call)
            return plan_document(fleet, await control.plan_on_backup(ref, command, call.caller, fleet))
        return answers.accepted(await control.on_backup(ref, command, call.caller))

    return answer


def _listing(call: Call, fleet: Fleet, found: Iterable[Backup]) -> Response:
    """Newest first; their ids begin with the time."""
    limit, after = requests.limit(call.request), call.request.query_params.get("after", "")
    before = after.rpartition("/")[2]
    later = sorted((each for each in found if not before or each.id < before), key=lambda each: each.id, reverse=True)
    docs = [answers.encode(backup_resource(fleet, each)) for each in later[: limit + 1]]
    page, next = answers.cursor(docs, limit)
    return answers.listing("Backup", page, answers.as_of(fleet), next)
