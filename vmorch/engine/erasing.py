"""Destroy a subject's key, so that what the log holds sealed for it can never be read again.

Must not touch the log's events, nor anything outside the log's database: what hosts and old dumps still hold is told to
whoever asks, and is theirs to delete.
"""

from collections.abc import Iterable

from vmorch.core.aggregates import erasure
from vmorch.core.aggregates.token import Token
from vmorch.core.aggregates.vm import Vm
from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet, name_held
from vmorch.core.ids import Stream, split_stream
from vmorch.core.operation import Change, change
from vmorch.engine.caller import Accepted, Caller
from vmorch.engine.recorder import Recorder, fingerprint
from vmorch.engine.subject_keys import SubjectKeys


class Erasing:
    """What callers may ask about erasure. Every method raises Rejected or LogUnavailable."""

    def __init__(self, recorder: Recorder, keys: SubjectKeys) -> None:
        self.recorder = recorder
        self.keys = keys

    @property
    def fleet(self) -> Fleet:
        """The live state; read only."""
        return self.recorder.world.fleet

    async def erase(self, ref: str, caller: Caller) -> Accepted:
        """Record that a subject is erased, and destroy its key. `ref` is `vm/NAME`, `token/NAME`, or the like with an
        id; deleted VMs and revoked tokens count.

        A repeat does what a crash left undone. Raises Rejected `reason-missing`, `nothing-sealed`, `already-so`,
        `ambiguous-name`, `no-such-vm`, `no-such-token`.
        """
        if not caller.reason:
            raise Rejected("reason-missing", "what is erased cannot be had back: that needs a reason")
        subject = await self._subject(ref)
        print = fingerprint(caller.actor, "erase", subject, None)

        def decide() -> tuple[list[Change], None]:
            events = erasure.erase(self.fleet.erasures, subject)
            return [change(erasure.STREAM, event) for event in events], None

        # first the word, then the deed: a key must not be gone without anybody knowing why
        facts = await self.recorder.once(
            decide, lambda _: self.recorder.meta_of(caller, print=print), caller, print
        )
        destroyed = await self.keys.keyring.erase(subject)
        if not facts and not destroyed:
            raise Rejected("already-so", f"{subject} was erased before", hint="vmorch event list --kind 'audit.*'")
        position = facts[-1].position if facts else self.fleet.position
        return Accepted(subject=subject, name=name_held(self.fleet, subject), position=position)

    async def _subject(self, ref: str) -> Stream:
        """The one subject with a key that a reference names: one that is not erased yet, if there is one."""
        kind, name = split_stream(ref)
        if kind not in ("vm", "token") or not name:
            raise Rejected("bad-request", f"{ref!r} must be vm/NAME or token/NAME")
        known: Iterable[Vm | Token] = self.fleet.vms.values() if kind == "vm" else self.fleet.tokens.values()
        found = {Stream(f"{kind}/{each.id}"): each for each in known if name in (each.id, each.name)}
        # an id that the fleet has forgotten is still known by its key
        kept = await self.keys.keyring.find({*found, Stream(ref)})
        whole = [subject for subject, key in kept.items() if key.wrapped is not None] or list(kept)
        if len(whole) > 1:
            ids = sorted(split_stream(each)[1] for each in whole)
            raise Rejected("ambiguous-name", f"{len(ids)} are or were called {name}", facts={"ids": ids})
        if not whole and not found:
            raise Rejected(f"no-such-{kind}", f"no {kind} is or was called {name!r}", hint="give its id")
        if not whole:
            raise Rejected("nothing-sealed", f"nothing is sealed for {ref}", hint=_elsewhere(found.values()))
        return whole[0]


def _elsewhere(found: Iterable[Vm | Token]) -> str:
    """Where to look for what a VM holds and is not its own."""
    for each in found:
        if isinstance(each, Vm) and each.spec is not None and each.spec.sealed_for is not None:
            return f"its user data is sealed for the VM that it was made from: {each.spec.sealed_for}"
    return ""
