"""Recorded decisions made again: the same planners, on the state that each was made on, from what it recorded."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from vmorch.core import operations
from vmorch.core.aggregates.drain import DrainPlanned
from vmorch.core.aggregates.vm import OperationStarted, VmCommand
from vmorch.core.codec import decode, encode, unpack_event
from vmorch.core.fleet import Fleet
from vmorch.core.ids import BackupId, HostId, Position, VmId, VolumeId, split_stream
from vmorch.core.messages import COMMANDS, Meta
from vmorch.core.operation import Change, change
from vmorch.core.operations.create import CreateVm
from vmorch.core.operations.delete_backup import DeleteBackup
from vmorch.core.operations.delete_snapshot import ForgetSnapshots
from vmorch.core.operations.restore import RestoreBackup
from vmorch.core.operations.take_snapshot import SnapshotVm
from vmorch.core.operations.verify_backup import ProveBackup
from vmorch.core.operations.volumes import AskForStrays, CreateVolume, SetStrayAside
from vmorch.core.planning.admission import (
    Admission,
    Who,
    admit_create,
    admit_delete_backup,
    admit_on_vm,
    admit_restore,
    admit_scheduled,
    admit_settling,
    admit_tidying,
    admit_verify,
    admit_volume,
)
from vmorch.core.planning.drain import plan_drain, plan_return
from vmorch.core.planning.view import view_of
from vmorch.core.planning.volumes import plan_create, plan_on_strays, plan_on_volume
from vmorch.core.records import Recorded

BY_VERB: Mapping[str, type[Any]] = {
    command.verb: command for command in COMMANDS.values() if command.__module__.startswith(operations.__name__)
}

Written = tuple[str, str, int, bytes]
"""The stream, kind, schema and bytes of an event."""


class Decision(Struct, frozen=True):
    """What was recorded of a decision, and all that was recorded with it."""

    position: Position
    record: Recorded
    event: OperationStarted | DrainPlanned
    with_it: tuple[Recorded, ...]


def decisions(records: Iterable[Recorded]) -> list[Decision]:
    """The decisions among the events, in the order of the positions that they were computed at."""
    appends: dict[datetime, list[Recorded]] = {}
    for record in records:
        appends.setdefault(record.recorded_at, []).append(record)
    found = []
    for together in appends.values():
        for record in together:
            event = decode(record).event
            if isinstance(event, OperationStarted):
                found.append(Decision(Position(event.position), record, event, tuple(together)))
            elif isinstance(event, DrainPlanned):
                found.append(Decision(event.plan.position, record, event, tuple(together)))
    return sorted(found, key=lambda each: each.position)


def again(fleet: Fleet, decision: Decision) -> list[Written]:
    """What the decision writes when it is made in this fleet."""
    kind, id = split_stream(decision.record.stream)
    if isinstance(decision.event, DrainPlanned):
        plan, view = decision.event.plan, view_of(fleet)
        assert plan.position == fleet.position
        # a plan that takes the place of another keeps as much of it as it can
        before = fleet.drains[id].plan if id in fleet.drains else None  # type: ignore[index]
        if plan.purpose == "drain":
            new = plan_drain(view, plan.hosts, decision.event.options, before=before)
        else:
            new = plan_return(view, plan.hosts, decision.event.options)
        planned = msgspec.structs.replace(decision.event, plan=new)
        return [_written(change(decision.record.stream, planned))]
    assert kind == "vm"
    return _by_stream([_written(each) for each in _operation(fleet, VmId(id), decision.event)])


def recorded(decision: Decision, made: list[Written]) -> list[Written]:
    """What was recorded in the places of what is written now."""
    wanted = {(stream, kind) for stream, kind, _, _ in made}
    return [
        (each.stream, each.kind, each.schema, each.data)
        for each in decision.with_it
        if (each.stream, each.kind) in wanted
    ]


def _by_stream(written: list[Written]) -> list[Written]:
    """In the order of an append, which goes stream by stream."""
    streams = list(dict.fromkeys(stream for stream, *_ in written))
    return sorted(written, key=lambda each: streams.index(each[0]))


def _written(each: Change) -> Written:
    new = encode(unpack_event(each.event), Meta(actor="", occurred_at=datetime.min))
    return each.stream, new.kind, new.schema, new.data


def _operation(fleet: Fleet, vm: VmId, event: OperationStarted) -> tuple[Change, ...]:
    who, operation = Who(actor=event.actor, reason=event.reason), event.operation
    if event.verb == "settle":
        return admit_settling(fleet, fleet.vms[vm], operation=operation)
    if event.verb == "tidy":
        return admit_tidying(fleet, fleet.vms[vm], HostId(event.arguments["host"]), operation=operation)
    cls = BY_VERB[event.verb]
    on = {name: value for name, value in event.arguments.items() if name not in cls.__struct_fields__}
    given = {name: value for name, value in event.arguments.items() if name in cls.__struct_fields__}
    command = msgspec.convert(given, cls)
    if "due" in on or isinstance(command, ForgetSnapshots):
        assert isinstance(command, SnapshotVm | ForgetSnapshots)
        due = datetime.fromisoformat(on["due"]) if "due" in on else None
        return admit_scheduled(fleet, fleet.vms[vm], command, operation=operation, who=who, at=due)
    return _asked(fleet, vm, event, command, on, who).changes


def _asked(
    fleet: Fleet, vm: VmId, event: OperationStarted, command: Any, on: Mapping[str, Any], who: Who
) -> Admission:
    operation = event.operation
    if "backup" in on:
        backup = fleet.backups[BackupId(on["backup"])]
        match command:
            case RestoreBackup():
                return admit_restore(fleet, backup, command, vm=vm, operation=operation, who=who)
            case ProveBackup():
                return admit_verify(fleet, backup, command, vm=vm, operation=operation, who=who)
            case _:
                assert isinstance(command, DeleteBackup)
                return admit_delete_backup(fleet, backup, command, vm=vm, operation=operation, who=who)
    if "place" in on:
        place = VmId(on["place"])
        match command:
            case CreateVolume():
                made = plan_create(fleet, command, place=place, vm=vm)
            case AskForStrays() | SetStrayAside():
                made = plan_on_strays(fleet, fleet.hosts[HostId(on["host"])], command, place=place, vm=vm)
            case _:
                made = plan_on_volume(fleet, fleet.volumes[VolumeId(on["volume"])], command, place=place, vm=vm)
        return admit_volume(fleet, made, command, vm=vm, operation=operation, who=who, on=on)
    if isinstance(command, CreateVm):
        return admit_create(fleet, command, vm=vm, operation=operation, who=who)
    assert isinstance(command, VmCommand)
    return admit_on_vm(fleet, fleet.vms[vm], command, operation=operation, who=who)
