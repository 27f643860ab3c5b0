"""The state of everything as rows, and back: what a checkpoint of the state holds.

A row is one living thing, compressed JSON of its state, of a VM without the operations that are over, which lie beside
it because few questions need them; the frame is what the fleet knows besides. `FINGERPRINT` tells
apart states of different code: what another version wrote is ignored, never misread. Must not read or write anything.
"""

import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from vmorch.core.aggregates import cluster as clusters
from vmorch.core.aggregates import erasure
from vmorch.core.aggregates.backup import Backup
from vmorch.core.aggregates.budget import Budget
from vmorch.core.aggregates.cluster import Cluster
from vmorch.core.aggregates.drain import Drain
from vmorch.core.aggregates.erasure import Erasures
from vmorch.core.aggregates.host import Host
from vmorch.core.aggregates.image import Image
from vmorch.core.aggregates.maintenance import Maintenance
from vmorch.core.aggregates.token import Token
from vmorch.core.aggregates.vm import KEPT_OPERATIONS, Operation, Vm
from vmorch.core.aggregates.volume import Volume
from vmorch.core.fleet import Fleet
from vmorch.core.ids import DrainId, OperationId, Position, Stream, VmId, split_stream
from vmorch.core.value import Value

FOLD = 2
"""To be raised whenever the same events fold into another state of the same shape."""

KINDS: Mapping[str, tuple[type[Any], str]] = {
    "vm": (Vm, "vms"),
    "host": (Host, "hosts"),
    "image": (Image, "images"),
    "token": (Token, "tokens"),
    "drain": (Drain, "drains"),
    "budget": (Budget, "budgets"),
    "maintenance": (Maintenance, "maintenances"),
    "backup": (Backup, "backups"),
    "volume": (Volume, "volumes"),
}
"""The type of each aggregate's state, and the fleet's table of them."""


class Frame(Value, frozen=True, kw_only=True):
    """What a fleet knows besides its things. The lists are in the order in which things ended."""

    recorded_at: datetime | None
    deleted: tuple[VmId, ...]
    over: tuple[DrainId, ...]
    through: tuple[str, ...]
    causes: dict[OperationId, DrainId]
    poisoned: dict[Stream, str]


class Held(Value, frozen=True):
    """One thing and its state; `name` is empty for what has none."""

    stream: Stream
    name: str
    state: Any  # one of KINDS, which differ in nothing that matters here


class StateRow(Value, frozen=True):
    """One thing's state as bytes; `over` are the operations of a VM that are over, empty if there are none."""

    stream: Stream
    name: str
    state: bytes
    over: bytes = b""


def _fingerprint() -> str:
    types = [*(kind for kind, _ in KINDS.values()), Cluster, Erasures, Frame]
    shapes = msgspec.json.schema_components(types)
    return hashlib.sha256(msgspec.json.encode([FOLD, shapes], order="deterministic")).hexdigest()[:32]


FINGERPRINT = _fingerprint()
"""Names the shape of the state and the way it is folded."""

_encode = msgspec.json.Encoder().encode
_decoders = {kind: msgspec.json.Decoder(type).decode for kind, (type, _) in KINDS.items()}
_decoders |= {"cluster": msgspec.json.Decoder(Cluster).decode, "audit": msgspec.json.Decoder(Erasures).decode}
_over = msgspec.json.Decoder(dict[OperationId, Operation]).decode
_frame = msgspec.json.Decoder(Frame).decode


def held(fleet: Fleet) -> list[Held]:
    """Everything in the fleet, in the order in which it came."""
    found = [
        Held(Stream(f"{kind}/{id}"), getattr(state, "name", ""), state)
        for kind, (_, table) in KINDS.items()
        for id, state in getattr(fleet, table).items()
    ]
    return [*found, Held(clusters.STREAM, "", fleet.cluster), Held(erasure.STREAM, "", fleet.erasures)]


def frame_of(fleet: Fleet, poisoned: Mapping[Stream, str]) -> Frame:
    """The rest of the fleet; `poisoned` are the streams that cannot be read to their end."""
    deleted, over, through = fleet.ended()
    return Frame(
        recorded_at=fleet.recorded_at,
        deleted=deleted,
        over=over,
        through=through,
        causes=dict(fleet.causes),
        poisoned=dict(poisoned),
    )


def row_of(each: Held) -> StateRow:
    """A thing's state as bytes. The order of its mappings is part of it: what is oldest is forgotten first."""
    state, over = each.state, b""
    if isinstance(state, Vm):
        ended = {id: operation for id, operation in state.operations.items() if operation.outcome is not None}
        state = replace(state, operations={id: each for id, each in state.operations.items() if id not in ended})
        over = zlib.compress(_encode(ended), 1) if ended else b""
    return StateRow(each.stream, each.name, zlib.compress(_encode(state), 1), over)


def read_row(row: StateRow) -> Held:
    """The state in a row. Raises ValueError if it holds none."""
    try:
        state = _decoders[split_stream(row.stream)[0]](zlib.decompress(row.state))
    except (zlib.error, msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"the state of {row.stream} cannot be read: {error}") from error
    held = Held(row.stream, row.name, state)
    return held if not row.over else Held(row.stream, row.name, remembering(state, row))


def remembering(vm: Vm, row: StateRow) -> Vm:
    """The VM with the operations besides its own that were over in a row of it. Raises ValueError if it holds none."""
    try:
        ended = _over(zlib.decompress(row.over)) if row.over else {}
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"the operations of {row.stream} cannot be read: {error}") from error
    # whichever it has itself are newer, and what is oldest is forgotten first
    every = list({**ended, **vm.operations}.items())
    return replace(vm, operations=dict(every[-KEPT_OPERATIONS:]))


def pack_frame(frame: Frame) -> bytes:
    """A frame as bytes."""
    return zlib.compress(_encode(frame), 1)


def read_frame(data: bytes) -> Frame:
    """The frame in bytes. Raises ValueError if they hold none."""
    try:
        return _frame(zlib.decompress(data))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"the frame of a state cannot be read: {error}") from error


def restore(position: Position, frame: Frame, rows: Iterable[Held]) -> Fleet:
    """The fleet at a position, whole or as much of it as `rows` hold; later facts can be applied to it."""
    fleet = Fleet()
    fleet.position, fleet.recorded_at, fleet.causes = position, frame.recorded_at, dict(frame.causes)
    for each in rows:
        put(fleet, each)
    fleet.end(deque(frame.deleted), deque(frame.over), deque(frame.through))
    return fleet


def put(fleet: Fleet, each: Held) -> None:
    """Make a thing known to a fleet, in this state."""
    kind, id = split_stream(each.stream)
    if kind == "cluster":
        fleet.cluster = each.state
    elif kind == "audit":
        fleet.erasures = each.state
    else:
        getattr(fleet, KINDS[kind][1])[id] = each.state
    if kind == "vm":
        fleet.operations.update(dict.fromkeys(each.state.operations, VmId(id)))
    fleet.versions[each.stream] = each.state.version


def state_of(fleet: Fleet, at: Stream) -> Any:
    """The state that the fleet has of a stream; None if it knows none."""
    kind, id = split_stream(at)
    if kind == "cluster":
        return fleet.cluster
    if kind == "audit":
        return fleet.erasures
    found = KINDS.get(kind)
    return None if found is None else getattr(fleet, found[1]).get(id)


def plain(state: object) -> bytes:
    """Bytes that are equal for equal states, however they came to be."""
    return _encode(msgspec.to_builtins(state, str_keys=True, order="deterministic", enc_hook=_opened))


def _opened(value: object) -> object:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    raise NotImplementedError(type(value))


def digest(fleet: Fleet) -> str:
    """One name for everything in the fleet: equal for equal states."""
    total = hashlib.sha256()
    for each in sorted(held(fleet), key=lambda each: each.stream):
        total.update(each.stream.encode() + b"\n" + plain(each.state) + b"\n")
    return total.hexdigest()
