"""VMs. Verbs come from the registry of commands, so a new operation is served without a line here."""

from typing import Any

from starlette.responses import Response

from vmorch.core.aggregates.vm import Vm, VmCommand
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import VmId
from vmorch.core.messages import COMMANDS
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.rollback import Prospect, RollbackVm, prospect
from vmorch.core.planning.admission import Admission
from vmorch.core.resources import snapshot_detail, snapshot_resources, vm_resource
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Handler
from vmorch.edge.routes.reading import basis, dry, page, state_around_vm

VERBS: dict[str, type[VmCommand]] = {
    command.verb: command for command in COMMANDS.values() if issubclass(command, VmCommand)
}
"""Every verb on a VM that exists."""


async def list_vms(call: Call) -> Response:
    docs, at, next = await page(call, "vms")
    return answers.listing("Vm", docs, at, next)


async def show_vm(call: Call) -> Response:
    fleet, vm = await _named(call)
    return answers.single("Vm", vm_resource(fleet, vm), answers.as_of(fleet))


async def list_snapshots(call: Call) -> Response:
    fleet, vm = await _named(call)
    docs = [answers.encode(each) for each in snapshot_resources(vm)]
    return answers.listing("Snapshot", docs, answers.as_of(fleet))


async def show_snapshot(call: Call) -> Response:
    fleet, vm = await _named(call)
    return answers.single("Snapshot", snapshot_detail(vm, call.path("snapshot")), answers.as_of(fleet))


async def _named(call: Call) -> tuple[Fleet, Vm]:
    ref = call.path("ref")
    fleet = await state_around_vm(call, ref)
    # an id still names a VM that was deleted; its name is free
    vm = fleet.vms.get(VmId(ref))
    return fleet, fleet.find_vm(ref) if vm is None or vm.spec is None else vm


async def create_vm(call: Call) -> Response:
    command = await requests.body(call.request, CreateVm)
    if dry(call):
        fleet = await basis(call)
        return plan_document(fleet, await call.services.control.plan_create(command, call.caller, fleet))
    return answers.accepted(await call.services.control.create_vm(command, call.caller))


def on_vm(command_type: type[VmCommand]) -> Handler:
    """What answers the route of one verb."""

    async def answer(call: Call) -> Response:
        command = await requests.body(call.request, command_type)
        control, ref = call.services.control, call.path("ref")
        if dry(call):
            fleet = await basis(call)
            admission = await control.plan_on_vm(ref, command, call.caller, fleet)
            way_back = None
            if isinstance(command, RollbackVm):
                way_back = prospect(command, fleet.vms[admission.vm])
            return plan_document(fleet, admission, way_back)
        return answers.accepted(await control.on_vm(ref, command, call.caller))

    return answer


async def no_such_verb(call: Call) -> Response:
    raise Rejected(
        "no-such-verb", f"a VM does not know {call.path('verb')!r}", facts={"verbs": sorted(VERBS)}
    )


def plan_document(fleet: Fleet, admission: Admission, rollback: Prospect | None = None) -> Response:
    """What an admitted command would do."""
    placement = admission.placement
    standing = fleet.vms.get(admission.vm)
    host = fleet.hosts.get(standing.host) if standing is not None and standing.host is not None else None
    verdicts: list[dict[str, Any]] = []
    if placement is not None:
        host = placement.host
        verdicts = [
            {
                "name": each.name,
                "fits": not each.against,
                "score": round(each.score, 1),
                "reason": each.against or each.why,
            }
            for each in placement.verdicts
        ]
    fields = {
        "host": None if host is None else host.name,
        "verdicts": verdicts,
        "steps": [each.label for each in admission.plan.steps],
        "spec": admission.spec,
        "rollback": rollback,
        "position": fleet.position,
    }
    return answers.document("Plan", fields, position=fleet.position)
