"""What travels between the control plane and an agent, and how each end knows who said it.

Every body is signed with the sender's own key and names whom it is for, so that the broker is only a wire.
Must not decide whether an order is obeyed; that needs the journal.
"""

from typing import Any, Protocol

import msgspec
from msgspec import Struct

from vmorch.core.codec import Packed
from vmorch.core.hostcommands import Answer, Observed, Sample
from vmorch.core.ids import CommandId, HostId, Position, SessionId, VmId
from vmorch.core.spec import HostFacts


class Signer(Protocol):
    """Something that signs bytes with a private key (an nkey pair does)."""

    def sign(self, input: bytes) -> bytes: ...


class Verifier(Protocol):
    """Something that checks a signature and raises if it is wrong (an nkey public key does)."""

    def verify(self, input: bytes, sig: bytes) -> bool: ...


class Forged(Exception):
    """A body was not signed by whom it should be, or is not for its reader. Nothing in it may be used."""


class Order(Struct, frozen=True, kw_only=True, tag="order"):
    """Do this, once. Refused by the agent if its session, incarnation or epoch is not the current one.

    `deadline` is in seconds from receipt: afterwards the agent neither begins nor goes on.
    """

    id: CommandId
    host: HostId
    session: SessionId
    incarnation: str
    epoch: int
    deadline: float
    command: Packed


class Withdrawal(Struct, frozen=True, kw_only=True, tag="withdrawal"):
    """Give the order of this id up, or never begin it; its answer then says what became of it."""

    id: CommandId
    host: HostId
    session: SessionId
    incarnation: str
    lane: str
    vm: VmId | None = None


ToAgent = Order | Withdrawal


class Receipt(Struct, frozen=True, kw_only=True):
    """The agent's immediate answer to an Order or Withdrawal.

    `accepted`: it is journaled, its Answer will come as a report. Otherwise `code` says why it will never be
    done: `stale-session`, `stale-incarnation`, `stale-epoch`, `identity-changed`, `unknown-command`, `expired`.
    """

    accepted: bool
    code: str = ""
    message: str = ""


class Answered(Struct, frozen=True, kw_only=True, tag="answered"):
    """The outcome of one order."""

    id: CommandId
    answer: Answer


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """First report of a session: what the host is and every domain that stands on it.

    `number` counts the host's sessions, so that an old hello that was held up somewhere cannot end a newer session.
    `domains` are those that vmorch made; `unmanaged` names the others.
    """

    number: int
    facts: HostFacts
    domains: dict[VmId, Observed]
    unmanaged: tuple[str, ...] = ()


class Seen(Struct, frozen=True, kw_only=True, tag="seen"):
    """A domain changed without (or beside) an order. `configuration` holds differences from what was defined:
    field -> (defined, found)."""

    vm: VmId
    observed: Observed
    configuration: dict[str, tuple[str, str]] | None = None


class SeenUnmanaged(Struct, frozen=True, kw_only=True, tag="seen-unmanaged"):
    """The domains on the host that vmorch did not make are now these (names or uuids)."""

    domains: tuple[str, ...]


Item = Answered | Hello | Seen | SeenUnmanaged


class Report(Struct, frozen=True, kw_only=True):
    """Facts from one host, oldest first, kept in its journal until they are confirmed.

    `through` numbers the last item in the journal; the confirmation repeats it.
    """

    host: HostId
    session: SessionId
    through: int
    items: tuple[Item, ...]


class Confirmation(Struct, frozen=True, kw_only=True):
    """The control plane's answer to a Report: everything up to `through` is in the log at `position`.

    `code` other than "" means that nothing was recorded: `stale-session` (say hello first), `busy` (try again
    later), `unknown-host`, `identity-changed`. `credentials`, when there, replace the agent's bus credentials.
    """

    through: int = 0
    position: Position = Position(0)
    incarnation: str = ""
    code: str = ""
    message: str = ""
    credentials: str = ""


class Heartbeat(Struct, frozen=True, kw_only=True):
    """The agent of this session is alive. Signed like everything else, believed for nothing but that."""

    host: HostId
    session: SessionId
    sequence: int


class Telemetry(Struct, frozen=True, kw_only=True):
    """How far the passage that `order` asked for has come. Signed, stored nowhere, believed for nothing but display."""

    host: HostId
    session: SessionId
    vm: VmId
    order: CommandId
    sample: Sample


class _Sealed(Struct, frozen=True):
    body: msgspec.Raw
    sig: bytes


_seal = msgspec.json.Encoder().encode
_open = msgspec.json.Decoder(_Sealed).decode
MAX_BODY = 1024 * 1024
"""Bytes; the broker's own limit of a message."""


def seal(body: Any, signer: Signer) -> bytes:
    """A body with its sender's signature, as bytes for the bus."""
    raw = msgspec.json.encode(body)
    return _seal({"body": msgspec.Raw(raw), "sig": signer.sign(raw)})


def unseal(data: bytes, type: Any, verifier: Verifier) -> Any:
    """The body of a message, decoded as `type`, if the verifier's key signed it. Raises Forged otherwise."""
    if len(data) > MAX_BODY:
        raise Forged("message too large")
    try:
        sealed = _open(data)
        if not verifier.verify(bytes(sealed.body), sealed.sig):
            raise Forged("bad signature")
    except Forged:
        raise
    except msgspec.MsgspecError as error:
        raise Forged(f"unreadable envelope: {error}") from error
    except Exception as error:  # a verifier tells a bad signature by whatever its crypto library raises
        raise Forged("bad signature") from error
    try:
        return msgspec.json.decode(bytes(sealed.body), type=type)
    except msgspec.MsgspecError as error:
        raise Forged(f"unreadable body: {error}") from error
