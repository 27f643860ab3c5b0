"""An agent and its control plane: what is told, what is done, and what survives."""

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from scripted import FACTS, ControlPlane, host, new_vm, provisioning, simulated, until

from hostagent import watching
from hostagent.hypervisor import Scope
from hostagent.inventory import another
from hostagent.scope import OrderScope
from hostagent.simulated_hypervisor import SimulatedHypervisor
from vmorch.core.hostcommands import Answer, Done, Failed, StartDomain, StopDomain
from vmorch.core.hypervisor import LibvirtHost, after_crash
from vmorch.core.ids import CommandId, MiB, VmId
from vmorch.core.messages import HostCommand
from vmorch.core.spec import HostFacts
from vmorch.wire.envelopes import Answered, Hello, Order, Seen, SeenUnmanaged


def test_an_agent_says_hello_and_carries_out_orders_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hello = plane.items[0]
            assert isinstance(hello, Hello)
            assert hello.domains == {}
            orders = [plane.order(command) for command in provisioning(vm)]
            receipts = [await plane.send(order) for order in orders]
            assert all(receipt.accepted for receipt in receipts)
            await until(lambda: len(plane.answers()) == 3)
            assert list(plane.answers()) == [order.id for order in orders]
            last = plane.answers()[orders[-1].id]
            assert isinstance(last, Done)
            assert last.observed is not None
            assert last.observed.power == "running"
            await until(lambda: plane.beats)
            assert plane.beats[0].session == plane.session

    asyncio.run(scenario())


def test_an_agent_needs_no_threads_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm, before = simulated(), new_vm(), set(threading.enumerate())
        async with host(tmp_path, hypervisor, threads=False) as (plane, _, _):
            for command in provisioning(vm):
                assert isinstance(await plane.do(command), Done)
            hypervisor.tamper(after_crash)
            await until(lambda: _last_seen(plane, vm))
            assert set(threading.enumerate()) <= before

    asyncio.run(scenario())


def test_a_journal_on_a_full_disk_takes_no_order_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            await plane.do(provisioning(vm)[0])
            with process.journal._lock:
                pages = process.journal._db.execute("PRAGMA page_count").fetchone()[0]
                process.journal._db.execute(f"PRAGMA max_page_count = {pages}")
            define = provisioning(vm)[1]
            refused = None
            while refused is None:
                receipt = await plane.send(plane.order(define))
                refused = None if receipt.accepted else receipt
            assert refused.code == "journal-unwritable"
            assert refused.message == "database or disk is full"
            with process.journal._lock:
                process.journal._db.execute("PRAGMA max_page_count = 100000")
            assert isinstance(await plane.do(define), Done)
            await until(lambda: not process.journal.open_orders())

    asyncio.run(scenario())


def test_an_answer_is_on_the_wire_soon_after_its_effect(tmp_path: Path) -> None:
    async def scenario() -> None:
        ended: list[float] = []
        hypervisor, vm = simulated(keep=lambda _host: ended.append(time.monotonic())), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            delays = []
            for index in range(60):
                ended.clear()
                command = StopDomain(vm=vm, grace=0, force=True) if index % 2 else StartDomain(vm=vm)
                if index == 0:
                    for each in provisioning(vm)[:-1]:
                        await plane.do(each)
                    ended.clear()
                before = len(plane.items)
                order = plane.order(command)
                await plane.send(order)
                await _answered(plane, order)
                told = [
                    at
                    for item, at in zip(plane.items[before:], plane.arrived[before:], strict=True)
                    if isinstance(item, Answered) and item.id == order.id
                ]
                delays.append(told[0] - ended[0])
            delays.sort()
            print("answer delay ms: median", delays[30] * 1e3, "p95", delays[57] * 1e3)
            assert delays[30] < 0.05

    asyncio.run(scenario())


def test_a_repeated_order_is_done_once_and_its_answer_is_told_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            command = provisioning(vm)[0]
            order = plane.order(command)
            await plane.send(order)
            await until(lambda: not process.journal.unconfirmed(1, 1) and order.id in plane.answers())
            for _ in range(3):
                before = len(plane.items)
                assert (await plane.send(order)).accepted
                await _longer(plane, before)
                # an answer that is not confirmed yet is on its way still, and is not told again
                await until(lambda: not process.journal.unconfirmed(1, 1))
            assert _times(plane, order.id) == 4
            assert hypervisor.begun[command.kind] == 1
            assert len(set(map(repr, plane.items[1:]))) == 1

    asyncio.run(scenario())


def test_a_repeated_order_that_still_runs_is_accepted_and_not_begun_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hypervisor.hang_next()
            order = plane.order(provisioning(vm)[0])
            await plane.send(order)
            await until(lambda: hypervisor.begun)
            for _ in range(5):
                assert (await plane.send(order)).accepted
            hypervisor.release()
            await until(lambda: order.id in plane.answers())
            assert sum(hypervisor.begun.values()) == 1
            assert _times(plane, order.id) == 1

    asyncio.run(scenario())


class Early(SimulatedHypervisor):
    """Answers what it has done, and goes on until it is let go."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.let_go = threading.Event()

    def execute(self, command: HostCommand, scope: Scope) -> Answer:
        answer = super().execute(command, scope)
        assert isinstance(answer, Done)
        scope.answer(answer)
        assert self.let_go.wait(10)
        return Failed(code="fault", message="nobody hears of it")


def test_an_order_that_is_answered_before_its_end_keeps_its_place_until_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(Early), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            first, second, _ = provisioning(vm)
            order = plane.order(first)
            await plane.send(order)
            await plane.send(plane.order(second))
            await until(lambda: order.id in plane.answers() and not process.journal.unconfirmed(1, 1))
            assert len(process.journal.open_orders()) == 2
            assert hypervisor.begun.total() == 1
            hypervisor.let_go.set()
            await until(lambda: not process.journal.open_orders())
            assert [type(answer) for answer in plane.answers().values()] == [Done, Done]
            assert _times(plane, order.id) == 1

    asyncio.run(scenario())


def test_who_waits_until_all_is_told_hears_it_also_when_it_was_told_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with host(tmp_path, simulated()) as (plane, process, _):
            told, session = list[int](), process.agent._session
            session.wake(lambda: told.append(1))
            await until(lambda: told == [1])
            for command in provisioning(new_vm()):
                await plane.send(plane.order(command))
                session.wake(lambda: told.append(2))
            await until(lambda: told == [1, 2, 2, 2])
            assert not process.journal.unconfirmed(1, 1)

    asyncio.run(scenario())


def test_what_a_killed_agent_had_answered_and_not_ended_is_looked_at_and_not_told_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            command = provisioning(vm)[0]
            order = plane.order(command)
            done = hypervisor.execute(command, OrderScope(time.monotonic, float("inf")))
            process.journal.accept(order, command.lane, vm, 0.0)
            process.journal.answer(order.id, vm, done, over=False)
        async with host(tmp_path, hypervisor, earlier=plane) as (plane, process, _):
            await until(lambda: not process.journal.open_orders() and not process.journal.unconfirmed(1, 1))
            assert plane.answers() == {order.id: done}
            assert _times(plane, order.id) == 1
            assert hypervisor.begun.total() == 1

    asyncio.run(scenario())


def test_a_slow_vm_does_not_hold_up_another_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, slow, other = simulated(), new_vm(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hypervisor.hang_next()
            orders = [plane.order(command) for command in provisioning(slow)]
            for order in orders:
                await plane.send(order)
            await until(lambda: hypervisor.begun)
            for command in provisioning(other):
                assert isinstance(await plane.do(command), Done)
            assert not plane.answers().keys() & {order.id for order in orders}
            hypervisor.release()
            await until(lambda: plane.answers().keys() >= {order.id for order in orders})

    asyncio.run(scenario())


def test_an_unconfirmed_report_is_told_again_until_it_is_confirmed(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            plane.refuse = ["busy", "busy"]
            answer = await plane.do(provisioning(vm)[0])
            assert isinstance(answer, Done)
            await until(lambda: not process.journal.unconfirmed(1, 1))
            assert plane.session == plane.reports[-1].session

    asyncio.run(scenario())


def test_an_outage_is_bridged_by_the_journal_and_followed_by_a_new_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, bus):
            first = plane.session
            hypervisor.hang_next()
            order = plane.order(provisioning(vm)[0])
            await plane.send(order)
            await until(lambda: hypervisor.begun)
            bus.cut("host")
            hypervisor.release()
            await until(lambda: process.journal.unconfirmed(1, 1))
            assert order.id not in plane.answers()
            bus.heal("host")
            await until(lambda: order.id in plane.answers())
            assert plane.session != first
            hello, *rest = plane.reports[-2:]
            assert isinstance(hello.items[0], Hello)
            assert all(report.session == plane.session for report in (hello, *rest))

    asyncio.run(scenario())


def test_a_stale_session_is_followed_by_a_new_hello(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            first = plane.session
            plane.refuse = ["stale-session"]
            order = plane.order(provisioning(vm)[0])
            await plane.send(order)
            await until(lambda: order.id in plane.answers())
            assert plane.session != first

    asyncio.run(scenario())


def test_a_host_that_became_another_than_it_said_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            first, facts = plane.session, hypervisor.facts()
            hypervisor.facts = lambda: replace(facts, encrypts=not facts.encrypts)  # type: ignore[method-assign]
            process.agent.facts_changed()
            await until(lambda: plane.session != first)
            hello = [item for item in plane.items if isinstance(item, Hello)][-1]
            assert hello.facts.encrypts is not facts.encrypts

    asyncio.run(scenario())


def test_a_network_that_went_away_behind_the_agent_is_noticed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FULL_EVERY", 0.2)

    async def scenario() -> None:
        hypervisor = simulated()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            facts = hypervisor.facts()
            hypervisor.facts = lambda: replace(facts, networks=("other",))  # type: ignore[method-assign]
            await until(lambda: _said_last(plane).networks == ("other",))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("now", "other"),
    [
        ({"local_gib": 99}, False),
        ({"local_gib": 90}, True),
        ({"shared_gib": 10}, True),
        ({"networks": ()}, True),
        ({"encrypts": False}, True),
        ({}, False),
    ],
)
def test_a_host_is_another_when_anything_changed_but_a_little_of_a_size(now: dict[str, Any], other: bool) -> None:
    said = replace(FACTS, local_gib=100, shared_gib=0, networks=("default",), encrypts=True)
    assert another(said, replace(said, **now)) is other


def _said_last(plane: ControlPlane) -> HostFacts:
    return [item.facts for item in plane.items if isinstance(item, Hello)][-1]


def test_new_credentials_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            plane.credentials = "fresh"
            await plane.do(provisioning(vm)[0])
            await until(lambda: process.credentials == ["fresh"])

    asyncio.run(scenario())


def test_a_queued_order_is_withdrawn_without_effect_and_a_running_one_is_told_to_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hypervisor.hang_next()
            commands = provisioning(vm)
            running, queued, last = (plane.order(command) for command in commands)
            for order in (running, queued, last):
                await plane.send(order)
            await until(lambda: hypervisor.begun)
            assert (await plane.withdraw(queued, commands[1])).accepted
            await until(lambda: queued.id in plane.answers())
            assert running.id not in plane.answers()
            assert (await plane.withdraw(running, commands[0])).accepted
            await until(lambda: last.id in plane.answers())
            for order in (running, queued):
                assert _code(plane, order.id) == "cancelled"
            assert _code(plane, last.id) == "no-domain"
            assert sum(hypervisor.effects.values()) == 0

    asyncio.run(scenario())


def test_an_order_that_comes_after_its_withdrawal_never_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, _):
            command = provisioning(vm)[0]
            order = plane.order(command)
            await plane.withdraw(order, command)
            # an answer that is not confirmed yet is on its way still, and is not told again
            await until(lambda: not process.journal.unconfirmed(1, 1) and order.id in plane.answers())
            assert (await plane.send(order)).accepted
            await until(lambda: _times(plane, order.id) == 2)
            assert _code(plane, order.id) == "cancelled"
            assert sum(hypervisor.begun.values()) == 0

    asyncio.run(scenario())


def test_an_order_whose_deadline_passes_in_its_lane_has_no_effect(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            hypervisor.hang_next()
            first, second, _ = provisioning(vm)
            await plane.send(plane.order(first))
            late = plane.order(second, deadline=0.05)
            await plane.send(late)
            await asyncio.sleep(0.06)
            hypervisor.release()
            await until(lambda: late.id in plane.answers())
            assert _code(plane, late.id) == "deadline-passed"
            assert hypervisor.begun[second.kind] == 0

    asyncio.run(scenario())


def test_what_a_killed_agent_left_open_is_looked_at_and_not_done_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm, other = simulated(), new_vm(), new_vm()
        async with host(tmp_path, hypervisor, grace=0) as (before, process, _):
            # the effect is there, its answer is not, when the agent ends
            process.journal.answer = _full_disk  # type: ignore[method-assign]
            done = before.order(provisioning(vm)[0])
            await before.send(done)
            await until(lambda: hypervisor.effects)
            hypervisor.hang_next()
            begun = before.order(provisioning(other)[0])
            await before.send(begun)
            await until(lambda: sum(hypervisor.begun.values()) == 2)
        assert before.answers() == {}
        async with host(tmp_path, hypervisor, earlier=before) as (plane, _, _):
            await until(lambda: len(plane.answers()) == 2)
            assert plane.answers()[done.id] == Done(already=True)
            assert _code(plane, begun.id) == "interrupted"
            assert sum(hypervisor.begun.values()) == 2

    asyncio.run(scenario())


def test_an_effect_of_which_the_daemon_died_is_found_when_it_is_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            create, define, start = provisioning(vm)
            await plane.do(create)
            hypervisor.vanish_at_next("lost-before")
            lost_before = plane.order(define)
            await plane.send(lost_before)
            await until(lambda: not hypervisor.here)
            hypervisor.come_back()
            await until(lambda: lost_before.id in plane.answers())
            assert _code(plane, lost_before.id) == "interrupted"
            await plane.do(define)
            hypervisor.vanish_at_next("lost-after")
            lost_after = plane.order(start)
            await plane.send(lost_after)
            await until(lambda: not hypervisor.here)
            hypervisor.come_back()
            await until(lambda: lost_after.id in plane.answers())
            answer = plane.answers()[lost_after.id]
            assert isinstance(answer, Done)
            assert answer.already
            assert hypervisor.begun[start.kind] == hypervisor.effects[start.kind] == 1

    asyncio.run(scenario())


def test_a_defect_in_a_command_is_answered_and_does_not_end_the_agent(tmp_path: Path) -> None:
    class Defective(SimulatedHypervisor):
        def _takes(self, command: object) -> float:
            raise ZeroDivisionError("planted")

    async def scenario() -> None:
        sound, vm = simulated(), new_vm()
        async with host(tmp_path, Defective(sound.facts(), sound.host)) as (plane, _, _):
            answer = await plane.do(provisioning(vm)[0])
            assert isinstance(answer, Failed)
            assert answer.code == "fault"
            assert "planted" in answer.message
            assert isinstance(await plane.do(provisioning(vm)[1]), Failed)

    asyncio.run(scenario())


def test_what_happens_without_an_order_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, _, _):
            for command in provisioning(vm):
                await plane.do(command)
            hypervisor.tamper(after_crash)
            await until(lambda: _last_seen(plane, vm))
            seen = _last_seen(plane, vm)
            assert seen is not None
            assert (seen.observed.power, seen.configuration) == ("off", None)
            hypervisor.tamper(lambda host: _grown(host, vm))
            await until(lambda: _last_seen(plane, vm) != seen)
            drifted = _last_seen(plane, vm)
            assert drifted is not None
            assert drifted.configuration == {"memory": ("128", "200")}
            hypervisor.tamper(lambda host: LibvirtHost(foreign=("pet",)))
            await until(lambda: any(isinstance(item, SeenUnmanaged) for item in plane.items))
            gone = _last_seen(plane, vm)
            assert gone is not None
            assert gone.observed.power == "absent"

    asyncio.run(scenario())


def test_what_happened_while_the_agent_was_away_is_in_its_hello(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (before, _, _):
            for command in provisioning(vm):
                await before.do(command)
        hypervisor.tamper(after_crash)
        async with host(tmp_path, hypervisor, earlier=before) as (plane, process, _):
            hello = plane.items[0]
            assert isinstance(hello, Hello)
            assert hello.domains[vm].power == "off"
            await plane.do(StartDomain(vm=vm))
            await until(lambda: process.journal.seen()[vm].observed.power == "running")
            assert _last_power(plane, vm) == "running"

    asyncio.run(scenario())


def test_a_domain_counts_as_told_only_after_older_answers_about_it(tmp_path: Path) -> None:
    """The outage hides an answer `running`; meanwhile the domain stops. The last word must be `off`."""

    async def scenario() -> None:
        hypervisor, vm = simulated(), new_vm()
        async with host(tmp_path, hypervisor) as (plane, process, bus):
            for command in provisioning(vm)[:-1]:
                await plane.do(command)
            hypervisor.hang_next()
            await plane.send(plane.order(StartDomain(vm=vm)))
            await until(lambda: hypervisor.begun["host.start-domain"])
            bus.cut("host")
            hypervisor.release()
            await until(lambda: process.journal.unconfirmed(1, 1))
            hypervisor.tamper(after_crash)
            bus.heal("host")
            await until(lambda: _last_power(plane, vm) == "off" and not process.journal.unconfirmed(1, 1))

    asyncio.run(scenario())


def test_an_agent_that_is_told_to_stop_lets_running_orders_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        hypervisor, vm = simulated(seconds=lambda _command: 0.3), new_vm()
        async with host(tmp_path, hypervisor) as (before, _, _):
            await before.send(before.order(provisioning(vm)[0]))
            await until(lambda: hypervisor.begun)
        assert sum(hypervisor.effects.values()) == 1
        async with host(tmp_path, hypervisor, earlier=before) as (plane, _, _):
            # an answer whose confirmation got lost in the stop is told again
            await until(lambda: [*(before.answers() | plane.answers()).values()] == [Done()])

    asyncio.run(scenario())


async def _answered(plane: ControlPlane, order: Order) -> None:
    await until(lambda: order.id in plane.answers())


async def _longer(plane: ControlPlane, items: int) -> None:
    await until(lambda: len(plane.items) > items)


def _full_disk(id: CommandId, vm: VmId | None, answer: Answer) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def _times(plane: ControlPlane, id: str) -> int:
    return sum(isinstance(item, Answered) and item.id == id for item in plane.items)


def _code(plane: ControlPlane, id: CommandId) -> str:
    answer = plane.answers()[id]
    assert isinstance(answer, Failed), answer
    return answer.code


def _last_seen(plane: ControlPlane, vm: VmId) -> Seen | None:
    seen = [item for item in plane.items if isinstance(item, Seen) and item.vm == vm]
    return seen[-1] if seen else None


def _last_power(plane: ControlPlane, vm: VmId) -> str:
    """What somebody believes who takes all items in the order in which they came."""
    power = "absent"
    for item in plane.items:
        if isinstance(item, Hello):
            power = item.domains[vm].power if vm in item.domains else "absent"
        elif isinstance(item, Seen) and item.vm == vm:
            power = item.observed.power
        elif isinstance(item, Answered) and item.answer.observed is not None:
            power = item.answer.observed.power
    return power


def _grown(host: LibvirtHost, vm: VmId) -> LibvirtHost:
    domain = host.domains[vm]
    found = replace(domain.found, memory=MiB(200))
    return replace(host, domains={**host.domains, vm: replace(domain, found=found)})
