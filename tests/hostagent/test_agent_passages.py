"""An agent carries a guest to another host: shows how far it is, outlives its own death, and answers when blind."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract import DISK, SPEC
from msgspec.structs import replace
from passages import do
from scripted import CLUSTER, FACTS, ControlPlane, host, new_vm, until

from hostagent import execution, telemetry
from hostagent.simulated_hypervisor import SimulatedHypervisor
from hostagent.simulated_site import Site
from vmorch.bus.bus import to_nobody
from vmorch.bus.keys import verifier
from vmorch.core.hostcommands import (
    ClaimDomain,
    CreateDisk,
    DefineDomain,
    Done,
    Failed,
    MigrateDomain,
    Observed,
    ObserveDomain,
    Passage,
    PrepareArrival,
    StartDomain,
)
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.messages import HostCommand
from vmorch.wire import subjects
from vmorch.wire.envelopes import Telemetry, unseal

SHARED = replace(DISK, storage="shared")
SECONDS = 1.5


class Pair:
    """A VM that runs on the agent's own host and is expected on the other one."""

    def __init__(self) -> None:
        site = Site()
        self.here, self.there = (self._host(name, site) for name in ("h1", "h2"))
        self.vm, self.spec = new_vm(), replace(SPEC, disks=(SHARED,))
        for command in (
            CreateDisk(vm=self.vm, disk=SHARED),
            DefineDomain(vm=self.vm, spec=self.spec),
            StartDomain(vm=self.vm),
        ):
            do(self.here, command)
        do(self.there, PrepareArrival(vm=self.vm, spec=self.spec))
        self.leave = MigrateDomain(vm=self.vm, address="h2", passage=Passage(encrypted=True))

    def _host(self, name: str, site: Site) -> SimulatedHypervisor:
        facts = replace(FACTS, hostname=name, address=name, shared_id="s")
        state = LibvirtHost(free={"local": 100 * 1024, "shared": 100 * 1024})
        return SimulatedHypervisor(facts, state, seconds=_seconds, site=site)


def _seconds(command: HostCommand) -> float:
    return SECONDS if isinstance(command, MigrateDomain) else 0.0


async def _hear(plane: ControlPlane) -> list[Telemetry]:
    told: list[Telemetry] = []

    async def hear(subject: str, _reply: str, data: bytes) -> None:
        said: Telemetry = unseal(data, Telemetry, verifier(plane.host_key.public))
        assert subject == subjects.telemetry(CLUSTER, said.host, said.vm)
        assert subjects.host_of(subject) == said.host
        told.append(said)

    await plane.link.serve(subjects.telemetries(CLUSTER), hear, reply_allowed=to_nobody)
    return told


def test_a_passage_shows_how_far_it_is_at_most_twice_a_second(tmp_path: Path) -> None:
    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here) as (plane, _, _):
            told = await _hear(plane)
            order = plane.order(pair.leave)
            await plane.send(order)
            await until(lambda: order.id in plane.answers())
            assert isinstance(plane.answers()[order.id], Done)
            assert {(each.vm, each.order, each.session) for each in told} == {(pair.vm, order.id, plane.session)}
            assert 2 <= len(told) <= 2 + SECONDS / telemetry.EVERY
            assert [each.sample.sent for each in told] == sorted({each.sample.sent for each in told})
            assert isinstance(do(pair.there, ClaimDomain(vm=pair.vm, spec=pair.spec, run=True)), Observed)

    asyncio.run(scenario())


def test_off_the_bus_nothing_is_kept_to_be_shown_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here) as (plane, _, bus):
            told = await _hear(plane)
            order = plane.order(pair.leave)
            await plane.send(order)
            await until(lambda: told)
            bus.cut("host")
            heard = len(told)
            await until(lambda: pair.there.observe(pair.vm).power == "running")
            bus.heal("host")
            await until(lambda: order.id in plane.answers())
            assert len(told) <= heard + 1

    asyncio.run(scenario())


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_passage_that_its_agent_did_not_outlive_is_followed_by_the_next_one(
    tmp_path: Path, withdrawn: bool
) -> None:
    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here, grace=0) as (before, _, _):
            order = before.order(pair.leave)
            await before.send(order)
            await until(lambda: pair.there.observe(pair.vm).moving)
        async with host(tmp_path, pair.here, earlier=before) as (plane, _, _):
            if withdrawn:
                await plane.withdraw(order, pair.leave)
            await until(lambda: order.id in plane.answers())
            answer = plane.answers()[order.id]
            if withdrawn:
                assert isinstance(answer, Failed)
                assert answer.code == "cancelled"
                assert pair.here.observe(pair.vm) == answer.observed
                assert pair.there.observe(pair.vm).power == "absent"
            else:
                assert answer == Done(observed=Observed(power="absent"), already=True)
                assert pair.there.observe(pair.vm).power == "running"
            assert pair.here.begun[MigrateDomain.kind] == 1

    asyncio.run(scenario())


def test_a_withdrawn_passage_is_answered_as_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here) as (plane, _, _):
            order = plane.order(pair.leave)
            await plane.send(order)
            await until(lambda: pair.there.observe(pair.vm).moving)
            await plane.withdraw(order, pair.leave)
            await until(lambda: order.id in plane.answers())
            answer = plane.answers()[order.id]
            assert isinstance(answer, Failed)
            assert answer.code == "cancelled"
            assert answer.observed is not None
            assert (answer.observed.power, answer.observed.moving) == ("running", False)

    asyncio.run(scenario())


@contextmanager
def _hanging(pair: Pair) -> Iterator[None]:
    pair.here.hang_next(StartDomain.kind)
    try:
        yield
    finally:
        pair.here.release()


def test_a_look_is_answered_beside_whatever_hangs_in_the_vms_lane(tmp_path: Path) -> None:
    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here) as (plane, _, _):
            with _hanging(pair):
                await plane.send(plane.order(StartDomain(vm=pair.vm)))
                await until(lambda: pair.here.begun[StartDomain.kind] > 1)
                answer = await plane.do(ObserveDomain(vm=pair.vm))
            assert isinstance(answer, Done)
            assert answer.observed == pair.here.observe(pair.vm)

    asyncio.run(scenario())


def test_a_look_at_a_host_whose_hypervisor_stays_away_is_answered_as_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "BLIND_SECONDS", 0.3)

    async def scenario() -> None:
        pair = Pair()
        async with host(tmp_path, pair.here) as (plane, _, _):
            pair.here.vanish()
            answer = await plane.do(ObserveDomain(vm=pair.vm))
            assert isinstance(answer, Done)
            assert answer.observed is not None
            assert answer.observed.power == "unknown"
            pair.here.come_back()
            seen = await plane.do(ObserveDomain(vm=pair.vm))
            assert isinstance(seen, Done)
            assert seen.observed is not None
            assert seen.observed.power == "running"

    asyncio.run(scenario())
