"""From facts to rows: which rows a fact touches, and what each row says. Pure.

The rows after any prefix of the log depend on that prefix alone, however it was cut into batches; that is what
makes a rebuild equal the live rows.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from vmorch.core.aggregates.drain import DrainEvent
from vmorch.core.aggregates.host import HostEvent
from vmorch.core.aggregates.image import ImageEvent
from vmorch.core.aggregates.maintenance import MaintenanceEvent
from vmorch.core.aggregates.token import TokenEvent
from vmorch.core.aggregates.vm import OperationEvent, OperationStarted, VmEvent
from vmorch.core.codec import Fact
from vmorch.core.drain_resources import drain_resource
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, HostId, ImageId, OperationId, VmId, split_stream
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.resources import (
    host_resource,
    image_resource,
    operation_resource,
    token_resource,
    vm_resource,
)
from vmorch.views.tables import Model

Row = dict[str, Any]
Key = tuple[Model, str]

_json = msgspec.json.Encoder(order="deterministic").encode


class Rows:
    """A fold of the log that remembers which rows changed since they were last taken."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._dirty: set[Key] = set()
        self._finished: dict[Key, Row | None] = {}
        self._shown: dict[HostId, tuple[str, bool]] = {}
        self._place: dict[VmId, HostId] = {}
        self._standing: dict[HostId, set[VmId]] = {}

    def apply(self, fact: Fact) -> None:
        """Take the next fact."""
        self.fleet.apply(fact)
        id = split_stream(fact.stream)[1]
        match fact.event:
            case VmEvent() as event:
                self._vm(VmId(id), event)
            case HostEvent():
                self._host(HostId(id))
            case ImageEvent():
                self._image(ImageId(id))
            case DrainEvent():
                self._drain(DrainId(id))
            case MaintenanceEvent():
                hosts = self.fleet.maintenances[id].hosts if id in self.fleet.maintenances else ()
                self._dirty |= {("hosts", host) for host in hosts if host in self.fleet.hosts}
            case TokenEvent():
                self._dirty.add(("tokens", id))
            case _:
                pass

    def take(self) -> dict[Key, Row | None]:
        """Every row that changed since the last call, None for one that is gone."""
        changed: dict[Key, Row | None] = dict(self._finished)
        for model, id in self._dirty:
            changed[(model, id)] = row_of(self.fleet, model, id)
        self._dirty.clear()
        self._finished.clear()
        return changed

    def _vm(self, id: VmId, event: VmEvent) -> None:
        self._dirty.add(("vms", id))
        self._stand(id)
        if isinstance(event, OperationStarted | OperationEvent):
            self._operation(event.operation)
        elif isinstance(event, VmRenamed):
            for operation in self.fleet.vms[id].operations:
                self._operation(operation)

    def _operation(self, id: OperationId) -> None:
        """A VM forgets its oldest operations, so the row of a finished one is made while it is still known."""
        found = self.fleet.operation(id)
        if found is None:
            return
        key: Key = ("operations", id)
        if found[1].outcome is None:
            self._dirty.add(key)
        else:
            self._dirty.discard(key)
            self._finished[key] = row_of(self.fleet, *key)

    def _drain(self, id: DrainId) -> None:
        """The fleet forgets the drains that were planned or over first, so their rows are made while they are known;
        hosts are shown as draining while one is under way."""
        drain = self.fleet.drains.get(id)
        if drain is None:
            return
        assert drain.plan is not None
        self._dirty |= {("hosts", host) for host in drain.plan.hosts if host in self.fleet.hosts}
        key: Key = ("drains", id)
        if drain.running:
            self._dirty.add(key)
        else:
            self._dirty.discard(key)
            self._finished[key] = row_of(self.fleet, *key)

    def _host(self, id: HostId) -> None:
        self._dirty.add(("hosts", id))
        host = self.fleet.hosts[id]
        seen = (host.name, host.agent == "connected")
        if self._shown.get(id) != seen:
            self._shown[id] = seen
            self._dirty |= {("vms", vm) for vm in self._standing.get(id, ())}

    def _stand(self, id: VmId) -> None:
        """Note where the VM stands now: looking through all VMs at each change of a host would take too long."""
        vm = self.fleet.vms.get(id)
        place, before = None if vm is None else vm.host, self._place.get(id)
        if place == before:
            return
        if before is not None:
            self._standing[before].discard(id)
            del self._place[id]
        if place is not None:
            self._standing.setdefault(place, set()).add(id)
            self._place[id] = place

    def _image(self, id: ImageId) -> None:
        self._dirty.add(("images", id))
        pin = self.fleet.images[id].pin
        for vm in self.fleet.vms.values():
            if pin and vm.spec and any(disk.image and disk.image.digest == pin.digest for disk in vm.spec.disks):
                self._dirty.add(("vms", vm.id))


def row_of(fleet: Fleet, model: Model, id: str) -> Row | None:
    """What a model shows of one thing; None if it shows nothing of it."""
    match model:
        case "vms":
            # the fleet forgets the VMs that were deleted first
            vm = fleet.vms.get(VmId(id))
            if vm is None or vm.spec is None or vm.deleted_at is not None:
                return None
            doc = vm_resource(fleet, vm)
            return _made(id, doc, name=doc.name, host=doc.host, state=doc.state, labels=dict(doc.labels))
        case "hosts":
            host = host_resource(fleet, fleet.hosts[HostId(id)])
            if host.state == "retired":
                return None
            return _made(id, host, name=host.name, state=host.state, labels=dict(host.labels))
        case "images":
            image = fleet.images[ImageId(id)]
            return None if image.removed else _made(id, image_resource(image), name=image.name)
        case "tokens":
            token = token_resource(fleet.tokens[id])
            return _made(id, token, name=token.name, state="revoked" if token.revoked else "active")
        case "drains":
            drain = fleet.drains[DrainId(id)]
            shown = drain_resource(fleet, drain)
            return _made(
                id,
                shown,
                state=shown.state,
                actor=shown.actor,
                started=drain.started_at is not None,
                active=drain.running,
            )
        case "operations":
            found = fleet.operation(OperationId(id))
            assert found is not None
            operation = operation_resource(fleet, *found)
            return _made(
                id,
                operation,
                vm=operation.vm,
                vm_name=operation.vm_name,
                verb=operation.verb,
                state=operation.state,
                actor=operation.actor,
                active=found[1].outcome is None,
            )


def ids_of(fleet: Fleet, model: Model) -> Iterable[str]:
    """The things that a fleet remembers for a model."""
    match model:
        case "vms":
            return fleet.vms
        case "hosts":
            return fleet.hosts
        case "images":
            return fleet.images
        case "tokens":
            return fleet.tokens
        case "drains":
            return (id for id, drain in fleet.drains.items() if drain.plan is not None)
        case "operations":
            return (id for id in fleet.operations if fleet.operation(id) is not None)


def _made(id: str, doc: msgspec.Struct, **columns: Any) -> Row:
    return {"id": id, **columns, "doc": _json(doc).decode()}
