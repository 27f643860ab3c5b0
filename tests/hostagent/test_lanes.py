"""Lanes: order within, no waiting between, and a running job's place is never given away."""

import asyncio
import threading
import time

import pytest
from scripted import until

from hostagent.hypervisor import Expired, Withdrawn
from hostagent.lanes import Lanes
from hostagent.scope import OrderScope
from hostagent.threads import Threads


def never(error: BaseException) -> None:
    raise AssertionError from error


def test_jobs_of_a_lane_run_in_order_and_one_at_a_time() -> None:
    async def scenario() -> None:
        trace: list[tuple[str, int]] = []

        async def work(job: int) -> None:
            trace.append(("begin", job))
            await asyncio.sleep(0)
            trace.append(("end", job))

        lanes = Lanes(work, never)
        for job in range(20):
            lanes.put("a", job)
        await until(lambda: not len(lanes))
        assert trace == [(what, job) for job in range(20) for what in ("begin", "end")]

    asyncio.run(scenario())


def test_lanes_do_not_wait_for_each_other_and_vanish_when_idle() -> None:
    async def scenario() -> None:
        gate, done = asyncio.Event(), []

        async def work(job: str) -> None:
            if job == "slow":
                await gate.wait()
            done.append(job)

        lanes = Lanes(work, never)
        lanes.put("a", "slow")
        lanes.put("a", "after")
        lanes.put("b", "fast")
        await until(lambda: done == ["fast"])
        assert len(lanes) == 1
        gate.set()
        await until(lambda: not len(lanes))
        assert done == ["fast", "slow", "after"]

    asyncio.run(scenario())


def test_a_waiting_job_can_be_taken_back_and_a_running_one_cannot() -> None:
    async def scenario() -> None:
        gate, done = asyncio.Event(), []

        async def work(job: str) -> None:
            await gate.wait()
            done.append(job)

        lanes = Lanes(work, never)
        for job in ("first", "second", "third"):
            lanes.put("a", job)
        assert not lanes.remove("a", "first")
        assert lanes.remove("a", "second")
        assert not lanes.remove("a", "second")
        assert not lanes.remove("b", "third")
        gate.set()
        await until(lambda: not len(lanes))
        assert done == ["first", "third"]

    asyncio.run(scenario())


def test_closing_waits_for_what_runs_and_begins_nothing_more() -> None:
    async def scenario() -> None:
        begun = []

        async def work(job: int) -> None:
            begun.append(job)
            await asyncio.sleep(0.05)

        lanes = Lanes(work, never)
        lanes.put("a", 1)
        lanes.put("a", 2)
        await asyncio.sleep(0)
        assert await lanes.close(grace=5)
        lanes.put("b", 3)
        await asyncio.sleep(0)
        assert begun == [1]

    asyncio.run(scenario())


def test_closing_says_when_something_still_runs() -> None:
    async def scenario() -> None:
        async def work(_job: int) -> None:
            await asyncio.Event().wait()

        lanes = Lanes(work, never)
        lanes.put("a", 1)
        assert not await lanes.close(grace=0.01)

    asyncio.run(scenario())


def test_a_fault_in_a_job_is_told() -> None:
    async def scenario() -> None:
        faults: list[BaseException] = []

        async def work(_job: int) -> None:
            raise ZeroDivisionError

        lanes = Lanes(work, faults.append)
        lanes.put("a", 1)
        await until(lambda: faults)
        assert isinstance(faults[0], ZeroDivisionError)

    asyncio.run(scenario())


def test_a_cancelled_waiter_does_not_free_the_place_of_a_running_thread() -> None:
    async def scenario() -> None:
        threads, gate, begun = Threads(limit=1), threading.Event(), []

        def blocked() -> None:
            begun.append("first")
            gate.wait(10)

        first = asyncio.create_task(threads.run(blocked))
        await until(lambda: begun)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(threads.run(lambda: begun.append("second")))
        await asyncio.sleep(0.05)
        assert begun == ["first"]
        gate.set()
        await second
        assert begun == ["first", "second"]

    asyncio.run(scenario())


def test_calls_that_hang_hold_up_no_calls_apart_from_them() -> None:
    async def scenario() -> None:
        threads, gate = Threads(limit=2), threading.Event()
        apart = threads.apart()
        hanging = [asyncio.create_task(apart.run(lambda: gate.wait(10))) for _ in range(5)]
        await asyncio.sleep(0)
        assert await threads.run(lambda: "journaled") == "journaled"
        assert not any(task.done() for task in hanging)
        gate.set()
        await asyncio.gather(*hanging)

    asyncio.run(scenario())


def test_a_thread_carries_results_and_exceptions_to_who_waits() -> None:
    async def scenario() -> None:
        threads = Threads()
        assert await threads.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)

    asyncio.run(scenario())


def test_a_scope_ends_by_withdrawal_or_by_time() -> None:
    now = [100.0]
    scope = OrderScope(lambda: now[0], 110.0)
    scope.check()
    assert scope.remaining() == 10.0
    now[0] = 120.0
    assert scope.remaining() == 0.0
    with pytest.raises(Expired):
        scope.check()
    scope.withdraw()
    with pytest.raises(Withdrawn):
        scope.check()


def test_a_pause_ends_at_once_when_the_order_is_withdrawn() -> None:
    scope = OrderScope(time.monotonic, time.monotonic() + 60)
    timer = threading.Timer(0.05, scope.withdraw)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Withdrawn):
        scope.pause(60)
    assert time.monotonic() - began < 10
    timer.join()
