"""Volumes: made, looked at, copied, grown, deleted; and directories on hosts that nobody owns. Giving a VM a volume and
taking it away are verbs on the VM; here they are found by the volume's name."""

from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.aggregates.volume import Volume
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import VolumeId
from vmorch.core.operations.attach_volume import AttachVolume
from vmorch.core.operations.detach_volume import DetachVolume
from vmorch.core.operations.grow_disk import GrowVmDisk
from vmorch.core.operations.volumes import (
    AskForStrays,
    CloneVolume,
    CreateVolume,
    DeleteVolume,
    ResizeVolume,
    RestoreVolume,
    SetStrayAside,
)
from vmorch.core.volume_resources import stray_resources, volume_resource
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Handler
from vmorch.edge.routes.reading import basis, dry, state
from vmorch.edge.routes.vms import plan_document
from vmorch.engine.handle import VolumeCommand


class AttachTo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give the volume to this VM."""

    vm: Annotated[str, Meta(min_length=1, max_length=64)]


class Detach(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take the volume away from its VM."""


VERBS: dict[str, type[VolumeCommand]] = {
    "clone": CloneVolume, "delete": DeleteVolume, "restore": RestoreVolume,
}  # fmt: skip
"""What can be done with a volume that no VM uses."""
ON_HOSTS: dict[str, type[VolumeCommand]] = {"find": AskForStrays, "set-aside": SetStrayAside}
"""What can be done on a host with directories that nobody owns."""


async def list_volumes(call: Call) -> Response:
    fleet, given = await state(call), call.request.query_params
    name, vm, host, wanted = given.get("name", "*"), given.get("vm"), given.get("host"), given.get("state")
    limit, after = requests.limit(call.request), given.get("after", "")
    shown = [
        each
        for each in (volume_resource(fleet, volume) for volume in fleet.volumes.values())
        if fnmatchcase(each.name, name)
        and (vm is None or vm == each.vm)
        and (host is None or host == each.host)
        and (wanted is None or wanted == each.state)
        and f"{each.name}/{each.id}" > after
    ]
    docs = [answers.encode(each) for each in sorted(shown, key=lambda each: (each.name, each.id))[: limit + 1]]
    found, next = answers.cursor(docs, limit)
    return answers.listing("Volume", found, answers.as_of(fleet), next)


async def list_strays(call: Call) -> Response:
    fleet = await state(call)
    limit, after = requests.limit(call.request), call.request.query_params.get("after", "")
    shown = sorted(stray_resources(fleet), key=lambda each: (each.name, each.id))
    docs = [answers.encode(each) for each in shown if f"{each.name}/{each.id}" > after][: limit + 1]
    found, next = answers.cursor(docs, limit)
    return answers.listing("Stray", found, answers.as_of(fleet), next)


async def show_volume(call: Call) -> Response:
    fleet = await state(call)
    return answers.single("Volume", volume_resource(fleet, _named(call, fleet)), answers.as_of(fleet))


async def create_volume(call: Call) -> Response:
    command = await requests.body(call.request, CreateVolume)
    return await _worked(call, "", command)


def on_volume(command_type: type[VolumeCommand]) -> Handler:
    """What answers the route of one verb."""

    async def answer(call: Call) -> Response:
        return await _worked(call, call.path("ref"), await requests.body(call.request, command_type))

    return answer


async def attach_volume(call: Call) -> Response:
    wanted = await requests.body(call.request, AttachTo)
    return await _on_vm(call, wanted.vm, AttachVolume(volume=_named(call, await basis(call)).id))


async def detach_volume(call: Call) -> Response:
    await requests.body(call.request, Detach)
    volume = _named(call, await basis(call))
    if volume.user is None:
        raise Rejected("volume-not-attached", f"{volume.name} is no VM's disk")
    return await _on_vm(call, volume.user, DetachVolume(volume=volume.id))


async def resize_volume(call: Call) -> Response:
    command = await requests.body(call.request, ResizeVolume)
    volume = _named(call, await basis(call))
    if volume.user is not None:
        return await _on_vm(call, volume.user, GrowVmDisk(disk=volume.disk, size=command.size))
    return await _worked(call, volume.id, command)


async def _worked(call: Call, ref: str, command: VolumeCommand) -> Response:
    control = call.services.control
    if dry(call):
        fleet = await basis(call)
        return plan_document(fleet, await control.plan_on_volumes(ref, command, call.caller, fleet))
    return answers.accepted(await control.on_volumes(ref, command, call.caller))


async def _on_vm(call: Call, ref: str, command: VmCommand) -> Response:
    control = call.services.control
    if dry(call):
        fleet = await basis(call)
        return plan_document(fleet, await control.plan_on_vm(ref, command, call.caller, fleet))
    return answers.accepted(await control.on_vm(ref, command, call.caller))


def _named(call: Call, fleet: Fleet) -> Volume:
    return fleet.volumes.get(VolumeId(call.path("ref"))) or fleet.find_volume(call.path("ref"))


OWN: dict[str, tuple[Callable[[Call], Awaitable[Response]], type, str]] = {
    "attach": (attach_volume, AttachTo, AttachVolume.summary),
    "detach": (detach_volume, Detach, DetachVolume.summary),
    "resize": (resize_volume, ResizeVolume, ResizeVolume.summary),
}
"""What a VM has a part in if it uses the volume."""
