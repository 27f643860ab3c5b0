"""What this agent holds on to: which machine and key it is, and which log it obeys.

A host that is not itself any more, or a log that fell back behind what it once confirmed, gets reports and no
obedience. Lives in the journal. Must not talk to anybody.
"""

import msgspec
import structlog

from hostagent.journal import Journal

_log = structlog.get_logger(__name__)
_left = msgspec.json.Decoder(tuple[str, ...])


class Regressed(Exception):
    """The control plane speaks from a log that was left behind."""


class Pins:
    """Values pinned at the first start; later ones are compared with them."""

    def __init__(self, journal: Journal, incarnation: str, machine_id: str, host_key: str) -> None:
        self._journal = journal
        if journal.meta("host-key") is None:
            journal.set_meta("host-key", host_key)
            journal.set_meta("machine-id", machine_id)
            journal.set_meta("incarnation", incarnation)
        self._wrong_key = journal.meta("host-key") != host_key
        self._wrong_machine = journal.meta("machine-id") != machine_id
        self._regressed = bool(journal.meta("regressed"))
        self.incarnation = journal.meta("incarnation") or incarnation

    @property
    def refusal(self) -> tuple[str, str] | None:
        """Why no order may be obeyed now, as code and message."""
        if self._wrong_key:
            return "identity-changed", "this host has another key than its journal knows"
        if self._wrong_machine:
            return "identity-changed", "this is another machine than the journal knows"
        if self._regressed:
            return "stale-incarnation", "the log fell back behind a position that it once confirmed"
        return None

    def check_machine(self, machine_id: str) -> None:
        """Compare the machine with the one that was pinned."""
        self._wrong_machine = self._journal.meta("machine-id") != machine_id
        if self._wrong_machine:
            _log.error("machine id changed; this agent obeys no order", machine_id=machine_id)

    def check_incarnation(self, incarnation: str) -> None:
        """Raises Regressed for an incarnation that this agent has left for a newer one."""
        if incarnation and incarnation in _left.decode(self._journal.meta("left-incarnations") or "[]"):
            raise Regressed(f"incarnation {incarnation} was left for {self.incarnation}")

    def greeted(self, incarnation: str, position: int) -> None:
        """A hello was recorded. A new incarnation is pinned: the log was restored on purpose. Within one
        incarnation a hello's position must be beyond everything confirmed before."""
        journal = self._journal
        if incarnation and incarnation != self.incarnation:
            _log.warning("log was restored", left=self.incarnation, incarnation=incarnation)
            left = _left.decode(journal.meta("left-incarnations") or "[]")
            journal.pin_incarnation(incarnation, (*left, self.incarnation), position)
            self.incarnation, self._regressed = incarnation, False
            return
        if position and position <= journal.position():
            _log.error("log fell back", position=position, confirmed=journal.position())
            journal.set_meta("regressed", "yes")
            self._regressed = True
            return
        journal.confirm(0, position)
