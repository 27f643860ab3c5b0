"""Drains from a request to the last guest, through the log, with real agents on simulated hosts."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.engine.cluster import OPERATOR, Cluster, cluster, until
from vmorch.core.aggregates.budget import CreateBudget, unavailable
from vmorch.core.aggregates.drain import ActivateHost, ApplyPlan, Drain, Entry, MoveBegun, PlanDrain
from vmorch.core.codec import Fact, decode
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Failed, MigrateDomain
from vmorch.core.hypervisor import LibvirtHost
from vmorch.core.ids import DrainId, Position, RequestId, split_stream, stream
from vmorch.core.messages import HostCommand, Meta
from vmorch.core.operations.delete import DeleteVm
from vmorch.core.records import Append, NewEvent, StreamAppend
from vmorch.core.spec import Placing, ReadySpec
from vmorch.engine.caller import Caller

pytestmark = pytest.mark.anyio

ADMIN = Caller(actor="ada", role="admin", reason="CHG-2211")


async def vm_on(made: Cluster, host: str, name: str, **fields: object) -> None:
    """A VM that is up on this host."""
    accepted = await made.create(name, **{"storage": "shared", **fields, "placing": Placing(host=host)})
    assert accepted.operation is not None
    assert (await made.over(accepted.operation)).outcome == "succeeded"


async def begin(made: Cluster, *hosts: str, **fields: object) -> DrainId:
    accepted = await made.control.drains.plan(PlanDrain(hosts=hosts, start=True, **fields), ADMIN)  # type: ignore[arg-type]
    return DrainId(accepted.subject)


async def over(made: Cluster, id: DrainId, within: float = 30.0) -> dict[str, Entry]:
    """The ledger, by VMs' names, once the drain is over."""
    await until(lambda: made.fleet.drains[id].state == "over", within)
    return {entry.name: entry for entry in made.fleet.drains[id].entries.values()}


def drain_of(made: Cluster, id: DrainId) -> Drain:
    return made.fleet.drains[id]


def host_of(made: Cluster, name: str) -> str | None:
    host = made.vm(name).host
    return None if host is None else made.fleet.hosts[host].name


async def facts(made: Cluster) -> list[Fact]:
    return [decode(record) for record in await made.log.read(Position(0), 100_000)]


def running(made: Cluster) -> dict[str, list[str]]:
    """Where domains run, by what the hosts themselves hold."""
    found: dict[str, list[str]] = {}
    for host in made.hosts.values():
        for vm, domain in host.hypervisor.host.domains.items():
            if domain.power == "running":
                found.setdefault(made.fleet.vms[vm].name, []).append(host.name)
    return found


def slowly(command: HostCommand) -> float:
    return 0.4 if isinstance(command, MigrateDomain) else 0.0


async def test_a_drain_moves_every_vm_and_leaves_nothing_on_its_host(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        for number in range(5):
            await vm_on(made, "h1", f"web-{number}")
        await vm_on(made, "h1", "local", storage="local")
        await vm_on(made, "h1", "off", start=False)
        await vm_on(made, "h1", "ci", eviction="restart")
        await vm_on(made, "h1", "cattle", eviction="stop")
        ledger = await over(made, await begin(made, "h1"))
        assert {name: entry.result for name, entry in ledger.items()} == {
            **{f"web-{number}": "moved" for number in range(5)},
            "local": "moved",
            "off": "moved",
            "ci": "moved",
            "cattle": "stopped",
        }
        assert [domain.power for domain in made.host("h1").hypervisor.host.domains.values()] == ["off"]
        await until(lambda: not any(vm.traces for vm in made.fleet.vms.values()))
        host = made.fleet.find_host("h1")
        assert list(host.reservations) == [made.vm("cattle").id]
        assert all(len(where) == 1 for where in running(made).values())
        assert host.cordoned is not None


async def test_everything_that_a_drain_causes_carries_its_id(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        before = made.fleet.position
        id = await begin(made, "h1")
        await over(made, id)
        kinds = {"vm", "drain"}
        later = [fact for fact in await facts(made) if fact.position > before]
        caused = [fact for fact in later if split_stream(fact.stream)[0] in kinds]
        assert {fact.event.kind for fact in caused} >= {"drain.planned", "vm.operation-started", "vm.migrated"}
        steps = [fact for fact in caused if not fact.event.kind.startswith("vm.observed")]
        assert {fact.meta.correlation for fact in steps} == {id}


async def test_one_vms_failure_is_in_the_ledger_and_stops_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        for number in range(6):
            await vm_on(made, "h1", f"web-{number}")
        words = "operation failed: guest CPU doesn't match specification"
        made.host("h1").hypervisor.fail_next(Failed(code="migration-failed", message=words), MigrateDomain.kind)
        id = await begin(made, "h1")
        ledger = await over(made, id)
        failed = [entry for entry in ledger.values() if entry.result == "failed"]
        assert [(entry.code, entry.message) for entry in failed] == [("migration-failed", words)]
        assert sum(entry.result == "moved" for entry in ledger.values()) == 5
        assert host_of(made, failed[0].name) == "h1"
        assert drain_of(made, id).outcome == "incomplete"


async def test_a_guest_that_is_not_ready_after_its_move_counts_as_failed(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web", ready=ReadySpec(within=1.0))
        vm = made.vm("web").id

        def mute(host: LibvirtHost) -> LibvirtHost:
            return replace(host, mute=frozenset({vm}))

        made.host("h2").hypervisor.tamper(mute)
        id = await begin(made, "h1")
        entry = (await over(made, id))["web"]
        assert (entry.result, entry.code, entry.host) == ("failed", "not-ready", made.fleet.find_host("h2").id)
        await until(lambda: not made.vm("web").traces)
        tidied = [fact for fact in await facts(made) if fact.event.kind == "vm.cleared"]
        assert [fact.meta.correlation for fact in tidied] == [id]


async def test_a_vm_of_which_the_log_cannot_be_read_blocks_by_name_and_nobody_else(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        await vm_on(made, "h1", "odd")
        at = stream("vm", made.vm("odd").id)
        strange = NewEvent(kind="vm.from-the-future", schema=1, data=b"{}", meta=encode_meta())
        version = made.fleet.version(at)
        await made.log.append(Append(streams=(StreamAppend(stream=at, expected=version, events=(strange,)),)))
        await until(lambda: at in made.control.world.poisoned)
        ledger = await over(made, await begin(made, "h1"))
        assert {name: entry.result for name, entry in ledger.items()} == {"web": "moved", "odd": "blocked"}
        assert "unreadable event" in ledger["odd"].causes[0].why


def encode_meta() -> bytes:
    return msgspec.json.encode(Meta(actor="somebody", occurred_at=datetime.now(UTC)))


async def test_a_cancelled_drain_is_over_within_five_seconds_and_nothing_restarts(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        for number in range(6):
            await vm_on(made, "h1", f"web-{number}")
        for _ in range(4):
            made.host("h1").hypervisor.hang_next(MigrateDomain.kind)
        id = await begin(made, "h1")
        await until(lambda: made.host("h1").hypervisor.begun[MigrateDomain.kind] == 4)
        asked = time.monotonic()
        await made.control.drains.cancel(id, ADMIN)
        ledger = await over(made, id, within=5.0)
        assert time.monotonic() - asked < 5.0
        assert {entry.result for entry in ledger.values()} == {"left"}
        await until(lambda: not any(vm.active for vm in made.fleet.vms.values()))
        at = made.fleet.position
        await asyncio.sleep(1.0)
        assert [fact.event.kind for fact in await facts(made) if fact.position > at and fact.stream[:2] == "vm"] == []
        assert {host_of(made, f"web-{number}") for number in range(6)} == {"h1"}
        assert running(made) == {f"web-{number}": ["h1"] for number in range(6)}


async def test_a_server_that_dies_in_the_middle_neither_loses_nor_doubles_a_move(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        made.seconds = slowly
        for number in range(8):
            await vm_on(made, "h1", f"web-{number}")
        id = await begin(made, "h1")
        await until(lambda: len(drain_of(made, id).begun) >= 4)
        # a second server takes over what the first one has left in the log
        async with made.plane():
            ledger = await over(made, id)
            assert {entry.result for entry in ledger.values()} == {"moved"}
            begun = [fact.event.vm for fact in await facts(made) if isinstance(fact.event, MoveBegun)]
            assert len(begun) == len(set(begun)) == 8
            assert all(len(where) == 1 for where in running(made).values())
            assert len(running(made)) == 8


async def test_a_stale_plan_is_refused_by_name_and_can_be_rebased(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        await vm_on(made, "h1", "gone")
        drains = made.control.drains
        id = (await drains.plan(PlanDrain(hosts=("h1",)), ADMIN)).subject
        assert made.fleet.find_host("h1").cordoned is None
        await made.do("gone", DeleteVm())
        with pytest.raises(Rejected) as caught:
            await drains.apply(id, ApplyPlan(), ADMIN)
        assert caught.value.code == "plan-stale"
        assert any("vm.operation-started  vm/gone  delete" in text for text in caught.value.facts.values())
        await drains.apply(id, ApplyPlan(rebase=True), ADMIN)
        assert set(await over(made, DrainId(id))) == {"web"}


async def test_a_plan_can_be_discarded_and_then_not_applied(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        drains = made.control.drains
        id = (await drains.plan(PlanDrain(hosts=("h1",)), ADMIN)).subject
        await drains.discard(id, ADMIN)
        with pytest.raises(Rejected, match="was discarded"):
            await drains.apply(id, ApplyPlan(), ADMIN)


async def test_a_repeated_request_is_the_same_drain(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        caller = replace(ADMIN, request=RequestId("r-drain"))
        command = PlanDrain(hosts=("h1",), start=True)
        first = await made.control.drains.plan(command, caller)
        await over(made, DrainId(first.subject))
        assert (await made.control.drains.plan(command, caller)).subject == first.subject
        assert len(made.fleet.drains) == 1


async def test_a_budget_holds_throughout(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2", "h3") as made:
        made.seconds = lambda command: 0.05 if isinstance(command, MigrateDomain) else 0.0
        await made.control.drains.create_budget(
            CreateBudget(name="web", selector={"app": "web"}, max_unavailable=1), OPERATOR
        )
        for number in range(4):
            await vm_on(made, "h1", f"web-{number}", labels={"app": "web"})
        away: list[int] = []
        budget = made.fleet.find_budget("web")
        made.control.world.on_fact(
            lambda fact: away.append(sum(unavailable(vm) for vm in made.fleet.vms.values() if budget.covers(vm)))
        )
        ledger = await over(made, await begin(made, "h1"))
        assert {entry.result for entry in ledger.values()} == {"moved"}
        assert max(away) == 1


async def test_a_deadline_ends_a_drain_by_name(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        for number in range(5):
            await vm_on(made, "h1", f"web-{number}")
        for _ in range(4):
            made.host("h1").hypervisor.hang_next(MigrateDomain.kind)
        id = await begin(made, "h1", deadline=1.5)
        ledger = await over(made, id, within=10.0)
        assert drain_of(made, id).outcome == "deadline"
        assert "it waited for wave 1" in ledger["web-4"].message


async def test_vms_come_back_when_that_is_asked_for_and_not_by_themselves(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        await vm_on(made, "h1", "web")
        await vm_on(made, "h1", "cattle", eviction="stop")
        await over(made, await begin(made, "h1"))
        await until(lambda: not any(vm.traces or vm.active for vm in made.fleet.vms.values()))
        accepted = await made.control.drains.activate("h1", ActivateHost(bring_back=True), ADMIN)
        ledger = await over(made, DrainId(accepted.subject))
        assert {name: entry.result for name, entry in ledger.items()} == {"web": "moved", "cattle": "started"}
        assert running(made) == {"web": ["h1"], "cattle": ["h1"]}
        assert made.fleet.find_host("h1").cordoned is None


async def test_a_host_is_not_uncordoned_under_its_drain(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h1", "h2") as made:
        made.seconds = slowly
        await vm_on(made, "h1", "web")
        id = await begin(made, "h1")
        with pytest.raises(Rejected, match="being drained"):
            await made.control.on_host("h1", "uncordon", {}, ADMIN)
        await over(made, id)
        await made.control.on_host("h1", "uncordon", {}, ADMIN)


async def test_a_host_that_falls_silent_in_its_drain_blocks_by_name(tmp_path: Path) -> None:
    async with cluster(tmp_path, "h2") as made:
        async with made.host("h1").agent():
            await until(lambda: made.fleet.find_host("h1").agent == "connected")
            await vm_on(made, "h1", "web")
        await until(lambda: made.fleet.find_host("h1").agent == "unreachable")
        with pytest.raises(Rejected) as caught:
            await begin(made, "h1")
        assert caught.value.code == "drain-blocked"
        assert caught.value.facts == {"web": ["h1 is unreachable"]}
