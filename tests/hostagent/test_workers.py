"""Threads that are used again."""

import threading
import time
from collections.abc import Callable

from passages import until

from hostagent.workers import Workers


def test_a_thread_that_has_ended_its_work_does_the_next() -> None:
    workers, threads, ended = Workers(), list[int](), threading.Event()

    def work() -> None:
        threads.append(threading.get_ident())
        ended.set()

    for _ in range(50):
        ended.clear()
        workers.start(work)
        assert ended.wait(10)
        until(lambda: workers._idle)
    assert len(threads) == 50
    assert len(set(threads)) == 1


def test_whoever_hangs_holds_up_nobody_else() -> None:
    workers, release, ended = Workers(), threading.Event(), list[int]()
    for _ in range(20):
        workers.start(lambda: release.wait(10) and None)
    for number in range(20):
        workers.start(lambda number=number: ended.append(number))  # type: ignore[misc]
    until(lambda: len(ended) == 20)
    release.set()
    until(lambda: len(workers._idle) >= 20)


def test_threads_without_work_end_and_none_of_what_comes_then_is_lost() -> None:
    workers, done = Workers(idle_seconds=0.001), list[int]()
    before = set(threading.enumerate())
    for number in range(2000):
        workers.start(lambda number=number: done.append(number))  # type: ignore[misc]
        if number % 50 == 0:
            until(lambda number=number: len(done) == number + 1)  # type: ignore[misc]
            time.sleep(0.001)
    until(lambda: len(done) == 2000)
    until(lambda: set(threading.enumerate()) <= before)
    assert sorted(done) == list(range(2000))
    assert not workers._idle


def test_what_a_thread_held_is_let_go_of_when_its_work_is_over() -> None:
    workers, gone = Workers(), threading.Event()

    class Held:
        def __del__(self) -> None:
            gone.set()

    def work(held: Held) -> Callable[[], None]:
        return lambda: print(held)

    workers.start(work(Held()))
    assert gone.wait(10)
