"""What must hold of every passage between two hosts, simulated or real: one suite against both.

A test module takes part by subclassing `PassageContract` and giving the fixture `trip`.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from contract import scope
from msgspec.structs import replace

from hostagent.hypervisor import Hypervisor, Withdrawn
from hostagent.scope import OrderScope
from vmorch.core.hostcommands import (
    Answer,
    ClaimDomain,
    ClearDomain,
    Done,
    Failed,
    MigrateDomain,
    Observed,
    ObserveDomain,
    Passage,
    PrepareArrival,
    ResumeDomain,
    Sample,
    SuspendDomain,
    TuneMigration,
)
from vmorch.core.ids import VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import VmSpec

T = TypeVar("T")
PLAIN = Passage(encrypted=False)


def until(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """The first value of the condition that counts as true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
    return found


class Trip(Protocol):
    """A guest that runs at `here` and can go `there`, with a shared disk."""

    vm: VmId
    spec: VmSpec
    here: Hypervisor
    there: Hypervisor

    @property
    def slow(self) -> Passage:
        """A passage that takes seconds, so that something can happen on the way."""

    @property
    def endless(self) -> Passage:
        """A passage that never ends by itself; make the guest `restless` first."""

    def restless(self) -> None:
        """Let the guest write to its memory faster than it can be carried."""


class Leaving:
    """A passage in a thread of its own."""

    def __init__(self, trip: Trip, passage: Passage) -> None:
        self.samples: list[Sample] = []
        self.told: list[float] = []
        self.scope = OrderScope(time.monotonic, time.monotonic() + 150, self._tell)
        self.command = leave(trip, passage)
        self.ended: Answer | BaseException | None = None
        self._trip = trip
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _tell(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.told.append(time.monotonic())

    def _run(self) -> None:
        try:
            self.ended = self._trip.here.execute(self.command, self.scope)
        except BaseException as raised:
            self.ended = raised

    def under_way(self, samples: int = 2) -> None:
        """Return once something of the guest is on its way."""
        until(lambda: self.ended is not None or len([each for each in self.samples if each.sent]) >= samples)
        assert self.ended is None, self.ended

    def end(self, seconds: float = 60.0) -> Answer | BaseException:
        """How it ended."""
        self._thread.join(seconds)
        assert self.ended is not None, "the passage does not end"
        return self.ended


def leave(trip: Trip, passage: Passage, *copy: str) -> MigrateDomain:
    """The order that sends the guest there."""
    return MigrateDomain(vm=trip.vm, address=trip.there.facts().address, passage=passage, copy=copy)


def do(hypervisor: Hypervisor, command: HostCommand) -> Observed:
    """Carry a command out with success; what was seen then."""
    answer = hypervisor.execute(command, scope(120))
    assert isinstance(answer, Done), (command, answer)
    return answer.observed or Observed(power="unknown")


def failed(answer: Answer | BaseException, code: str) -> Failed:
    """The failure that it must be."""
    assert isinstance(answer, Failed), answer
    assert answer.code == code, answer
    return answer


def arrival(trip: Trip) -> PrepareArrival:
    """The order that prepares the destination."""
    facts = trip.here.facts()
    return PrepareArrival(vm=trip.vm, spec=trip.spec, cpu=facts.cpu, machine=facts.machines[-1], encrypted=False)


def at_home(trip: Trip) -> None:
    """The guest runs on where it was, and nothing of it is left at the destination, by itself or by being cleared."""
    seen = until(lambda: _settled(trip.here.observe(trip.vm)))
    assert (seen.power, seen.reason) == ("running", "")
    do(trip.there, ClearDomain(vm=trip.vm))
    assert do(trip.there, ObserveDomain(vm=trip.vm)).power == "absent"


def _settled(seen: Observed) -> Observed | None:
    return None if seen.moving else seen


class PassageContract:
    """Tests for any pair of hypervisors; see above for the fixture."""

    def test_a_guest_goes_there_and_is_claimed(self, trip: Trip) -> None:
        do(trip.there, arrival(trip))
        # a plain one may be over before anybody looks
        going = Leaving(trip, trip.slow)
        answer = going.end()
        assert isinstance(answer, Done), answer
        assert answer.observed == Observed(power="absent")
        assert going.samples
        assert do(trip.there, ObserveDomain(vm=trip.vm)).power == "running"
        claim = ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)
        seen = do(trip.there, claim)
        assert (seen.power, seen.moving, seen.memory) == ("running", False, trip.spec.memory)
        repeated = trip.there.execute(claim, scope())
        assert repeated == Done(observed=seen, already=True)
        again = trip.here.execute(going.command, scope())
        assert again == Done(observed=Observed(power="absent"), already=True)
        assert trip.here.resolve(going.command, scope()) == again
        assert do(trip.here, ClearDomain(vm=trip.vm)).power == "absent"

    def test_both_ends_show_that_it_is_under_way(self, trip: Trip) -> None:
        do(trip.there, arrival(trip))
        going = Leaving(trip, trip.slow)
        going.under_way()
        here, there = (do(each, ObserveDomain(vm=trip.vm)) for each in (trip.here, trip.there))
        assert (here.power, here.moving) == ("running", True)
        assert (there.power, there.reason, there.moving) == ("paused", "migration", True)
        assert isinstance(going.end(), Done)
        remaining = [each.remaining for each in going.samples if each.total]
        assert remaining[-1] < remaining[0]
        assert [each.elapsed for each in going.samples] == sorted(each.elapsed for each in going.samples)
        assert not do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)).moving

    def test_a_withdrawn_passage_ends_at_once_and_the_guest_stays(self, trip: Trip) -> None:
        do(trip.there, arrival(trip))
        going = Leaving(trip, trip.slow)
        going.under_way()
        began = time.monotonic()
        going.scope.withdraw()
        assert isinstance(going.end(), Withdrawn)
        assert time.monotonic() - began < 4, "two seconds, and a loaded machine"
        at_home(trip)

    def test_a_passage_without_progress_is_given_up(self, trip: Trip) -> None:
        trip.restless()
        do(trip.there, arrival(trip))
        going = Leaving(trip, replace(trip.endless, stall=3, slow_down=False))
        stalled = failed(going.end(), "migration-stalled")
        assert "no progress" in stalled.message
        assert any(each.passes > 1 for each in going.samples)
        at_home(trip)

    def test_a_passage_is_given_up_when_its_time_is_over(self, trip: Trip) -> None:
        trip.restless()
        do(trip.there, arrival(trip))
        going = Leaving(trip, replace(trip.endless, within=3))
        assert "not over within 3 s" in failed(going.end(), "migration-stalled").message
        at_home(trip)

    def test_more_time_for_the_switch_over_rescues_a_passage(self, trip: Trip) -> None:
        trip.restless()
        do(trip.there, arrival(trip))
        going = Leaving(trip, replace(trip.endless, max_downtime=0.02))
        going.under_way(samples=4)
        tuned = trip.here.execute(TuneMigration(vm=trip.vm, bandwidth=0, max_downtime=20), scope())
        assert isinstance(tuned, Done), tuned
        assert isinstance(going.end(), Done)
        assert do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)).power == "running"

    def test_a_guest_that_does_not_converge_is_switched_over(self, trip: Trip) -> None:
        trip.restless()
        do(trip.there, arrival(trip))
        going = Leaving(trip, replace(trip.endless, stall=2, on_stall="postcopy", slow_down=False))
        assert isinstance(going.end(120), Done)
        assert any(each.postcopy for each in going.samples)
        assert do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=True)).power == "running"

    def test_a_passage_that_may_not_be_switched_over_is_not(self, trip: Trip) -> None:
        do(trip.there, arrival(trip))
        going = Leaving(trip, trip.slow)
        going.under_way()
        failed(trip.here.execute(TuneMigration(vm=trip.vm, postcopy=True), scope()), "libvirt-refused")
        going.scope.withdraw()
        assert isinstance(going.end(), Withdrawn)
        at_home(trip)

    def test_a_paused_guest_arrives_paused(self, trip: Trip) -> None:
        do(trip.here, SuspendDomain(vm=trip.vm))
        do(trip.there, arrival(trip))
        assert isinstance(Leaving(trip, replace(PLAIN, on_stall="postcopy", connections=2)).end(), Done)
        seen = do(trip.there, ClaimDomain(vm=trip.vm, spec=trip.spec, run=False))
        assert (seen.power, seen.reason) == ("paused", "user")
        assert do(trip.there, ResumeDomain(vm=trip.vm)).power == "running"
