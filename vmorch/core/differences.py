"""What is different between two states of one thing, field by field, and which event made it so. Pure.

Must not know any noun: a state is what its struct says. What every event moves is left out (versions, when something
was seen last), and so are the operations that a VM remembers, since `active` and their effects tell of them, and the
digests of secrets.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from vmorch.core.codec import Fact
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Stream
from vmorch.core.sealed import briefly
from vmorch.core.states import state_of
from vmorch.core.value import Value

_LEFT_OUT = frozenset({"version", "operations", "observed_at", "hash", "invitation"})


class Change(Value, frozen=True, kw_only=True):
    """One field that differs. `event` and what follows tell of the last event that changed it; they are None and empty
    if it cannot be told."""

    field: str
    before: Any
    after: Any
    position: int | None = None
    event: str = ""
    actor: str = ""
    reason: str = ""
    times: int = 0
    """How many events changed the field on the way."""


class Difference(Value, frozen=True, kw_only=True):
    """One thing that differs. `change` is created, changed or gone."""

    subject: Stream
    name: str
    change: str
    fields: tuple[Change, ...]


def fields_of(state: Any, but: Any = None) -> dict[str, Any]:
    """A state as flat fields, `spec.memory` and the like; lists are one field each, what holds nothing is left out.

    Whatever is the very same in the state `but` is left out too: most of a state is, from one event to the next.
    """
    if state is None:
        return {}
    fields = {
        name: getattr(state, name)
        for name in state.__struct_fields__
        if name not in _LEFT_OUT and (but is None or getattr(state, name) is not getattr(but, name))
    }
    return dict(_flat(briefly(msgspec.to_builtins(fields)), ""))


def _flat(fields: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            yield f"{prefix}{key}", value


class Tracing:
    """Folds facts into a fleet and remembers, for the streams that are asked about, what changed which field."""

    def __init__(self, fleet: Fleet, streams: frozenset[Stream] | None = None) -> None:
        self.fleet = fleet
        self._streams = streams
        self._before: dict[Stream, Any] = {}
        self._last: dict[Stream, dict[str, tuple[Fact, int]]] = {}

    def apply(self, fact: Fact) -> None:
        """Take the next fact."""
        at = fact.stream
        if self._streams is not None and at not in self._streams:
            self.fleet.apply(fact)
            return
        was = state_of(self.fleet, at)
        self._before.setdefault(at, was)
        self.fleet.apply(fact)
        now = state_of(self.fleet, at)
        old, new = fields_of(was, now), fields_of(now, was)
        touched = self._last.setdefault(at, {})
        for field in old.keys() | new.keys():
            if old.get(field) != new.get(field):
                touched[field] = (fact, touched[field][1] + 1 if field in touched else 1)

    def differences(self) -> list[Difference]:
        """What differs now from the beginning, by subject; what was changed and changed back is no difference."""
        found = []
        for at, was in sorted(self._before.items()):
            now = state_of(self.fleet, at)
            old, new = fields_of(was), fields_of(now)
            changes = tuple(
                self._change(at, field, old.get(field), new.get(field))
                for field in sorted(old.keys() | new.keys())
                if old.get(field) != new.get(field)
            )
            if changes:
                gone = now is None or _ended(now)
                change = "created" if _unborn(was) else "gone" if gone and not _ended(was) else "changed"
                name = getattr(now, "name", "") or getattr(was, "name", "")
                found.append(Difference(subject=at, name=name, change=change, fields=changes))
        return found

    def _change(self, at: Stream, field: str, before: Any, after: Any) -> Change:
        fact, times = self._last[at].get(field, (None, 0))
        if fact is None:
            return Change(field=field, before=before, after=after)
        return Change(
            field=field,
            before=before,
            after=after,
            position=fact.position,
            event=fact.event.kind,
            actor=fact.meta.actor,
            reason=fact.meta.reason,
            times=times,
        )


def _unborn(state: Any) -> bool:
    return state is None or getattr(state, "version", 1) == 0


def _ended(state: Any) -> bool:
    return any(getattr(state, field, None) for field in ("deleted_at", "retired", "removed", "revoked", "deleted"))
