"""The journal: nothing is done without an intent, nothing done goes untold, whatever kills the process."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostagent.hypervisor import Inventory
from hostagent.journal import KEEP_ORDERS, KEEP_SECONDS, Journal
from vmorch.core.codec import pack
from vmorch.core.hostcommands import Done, Failed, Observed, StartDomain
from vmorch.core.ids import CommandId, HostId, SessionId, VmId
from vmorch.wire.envelopes import Answered, Order, Seen, SeenUnmanaged

VM = VmId("vm-1")
RUNNING, OFF = Observed(power="running", vcpus=1), Observed(power="off")


def order(id: str, vm: VmId = VM, epoch: int = 1) -> Order:
    return Order(
        id=CommandId(id),
        host=HostId("h1"),
        session=SessionId("s"),
        incarnation="i",
        epoch=epoch,
        deadline=1.0,
        command=pack(StartDomain(vm=vm)),
    )


def accept(journal: Journal, each: Order, vm: VmId = VM, at: float = 1.0) -> str:
    return journal.accept(each, f"vm/{vm}", vm, at)


def told(journal: Journal) -> list[object]:
    return [entry.item for entry in journal.unconfirmed(1000, 1 << 20)]


def look(**domains: Observed) -> Inventory:
    seen = {VmId(vm.replace("_", "-")): observed for vm, observed in domains.items()}
    return Inventory(domains=seen, configuration={}, unmanaged=())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_an_accepted_order_is_open_until_it_is_answered_and_told_until_it_is_confirmed(path: Path) -> None:
    journal = Journal(path)
    assert accept(journal, order("a")) == "new"
    assert [each.id for each in journal.open_orders()] == ["a"]
    assert told(journal) == []
    journal.answer(CommandId("a"), VM, Done(observed=RUNNING))
    assert journal.open_orders() == []
    [entry] = journal.unconfirmed(50, 1000)
    assert entry.item == Answered(id=CommandId("a"), answer=Done(observed=RUNNING))
    journal.confirm(entry.seq, 7)
    assert told(journal) == []
    assert journal.position() == 7
    journal.close()


def test_everything_is_there_after_reopening(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a", epoch=3))
    accept(journal, order("b", epoch=3))
    journal.answer(CommandId("a"), VM, Done(observed=RUNNING))
    journal.close()
    again = Journal(path)
    assert [each.id for each in again.open_orders()] == ["b"]
    assert len(told(again)) == 1
    assert again.seen()[VM].observed == RUNNING
    assert accept(again, order("c", epoch=2)) == "stale-epoch"
    again.close()


def test_a_second_answer_changes_nothing(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    journal.answer(CommandId("a"), VM, Done())
    journal.answer(CommandId("a"), VM, Failed(code="x", message="late"))
    assert told(journal) == [Answered(id=CommandId("a"), answer=Done())]
    journal.close()


def test_an_order_that_is_answered_before_its_end_is_told_at_once_and_stays_open_until_then(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    journal.answer(CommandId("a"), VM, Done(observed=RUNNING), over=False)
    assert told(journal) == [Answered(id=CommandId("a"), answer=Done(observed=RUNNING))]
    assert journal.seen()[VM].observed == RUNNING
    journal.close()
    again = Journal(path)
    assert accept(again, order("b")) == "new"
    assert {each.id: each.told for each in again.open_orders()} == {"a": True, "b": False}
    assert accept(again, order("a")) == "known"
    again.answer(CommandId("a"), VM, Failed(code="x", message="late"))
    assert [each.id for each in again.open_orders()] == ["b"]
    assert told(again) == [Answered(id=CommandId("a"), answer=Done(observed=RUNNING))]
    again.close()


def test_a_repeated_done_order_is_told_again_only_when_it_was_confirmed(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    assert accept(journal, order("a")) == "known"
    journal.answer(CommandId("a"), VM, Done())
    assert accept(journal, order("a")) == "known"
    [entry] = journal.unconfirmed(50, 1000)
    journal.confirm(entry.seq, 1)
    assert accept(journal, order("a")) == "known"
    [again] = journal.unconfirmed(50, 1000)
    assert again.item == entry.item
    assert again.seq > entry.seq
    journal.close()


def test_numbers_of_items_are_never_used_twice(path: Path) -> None:
    numbers = []
    for index in range(3):
        journal = Journal(path)
        accept(journal, order(f"o{index}"))
        journal.answer(CommandId(f"o{index}"), VM, Done())
        [entry] = journal.unconfirmed(50, 1000)
        numbers.append(entry.seq)
        journal.confirm(entry.seq, 1)
        journal.close()
    assert numbers == [1, 2, 3]


def test_the_withdrawal_of_an_unknown_order_keeps_it_from_ever_running(path: Path) -> None:
    journal = Journal(path)
    assert journal.withdraw(CommandId("a"), "vm/vm-1", VM, "s", 1.0)
    assert accept(journal, order("a")) == "known"
    assert journal.open_orders() == []
    assert [item.answer.code for item in told(journal)] == ["cancelled"]  # type: ignore[attr-defined]
    journal.close()


def test_the_withdrawal_of_an_open_order_leaves_it_open(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    assert not journal.withdraw(CommandId("a"), "vm/vm-1", VM, "s", 1.0)
    assert [each.id for each in journal.open_orders()] == ["a"]
    journal.close()


def test_a_batch_is_bounded_by_items_and_by_bytes_and_never_empty(path: Path) -> None:
    journal = Journal(path)
    for index in range(10):
        accept(journal, order(f"o{index}"))
        journal.answer(CommandId(f"o{index}"), VM, Failed(code="x", message="m" * 1000))
    assert len(journal.unconfirmed(4, 1 << 20)) == 4
    assert len(journal.unconfirmed(50, 3500)) == 3
    assert [entry.seq for entry in journal.unconfirmed(50, 1)] == [1]
    journal.close()


def test_only_changes_are_told_and_only_once(path: Path) -> None:
    journal = Journal(path)
    settled = {VM: True}
    assert journal.look(look(vm_1=RUNNING), lambda vm: settled[vm]) == 1
    assert journal.look(look(vm_1=RUNNING), lambda vm: settled[vm]) == 0
    settled[VM] = False
    assert journal.look(look(vm_1=OFF), lambda vm: settled[vm]) == 0
    settled[VM] = True
    assert journal.look(look(vm_1=OFF), lambda vm: settled[vm]) == 1
    assert not journal.glance(VM, OFF, lambda _vm: True)
    assert journal.glance(VM, Observed(power="absent"), lambda _vm: True)
    assert journal.seen() == {}
    assert [item.observed.power for item in told(journal)] == ["running", "off", "absent"]  # type: ignore[attr-defined]
    journal.close()


def test_an_answer_counts_as_told(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    journal.answer(CommandId("a"), VM, Done(observed=RUNNING))
    assert journal.look(look(vm_1=RUNNING), lambda _vm: True) == 0
    journal.close()


def test_drift_of_the_configuration_is_told_and_told_again_when_it_is_over(path: Path) -> None:
    journal = Journal(path)
    differs = {VM: {"memory": ("128", "256")}}
    journal.look(Inventory(domains={VM: OFF}, configuration=differs, unmanaged=()), lambda _vm: True)
    journal.look(Inventory(domains={VM: OFF}, configuration={}, unmanaged=("pet",)), lambda _vm: True)
    assert told(journal) == [
        Seen(vm=VM, observed=OFF, configuration=differs[VM]),
        Seen(vm=VM, observed=OFF, configuration={}),
        SeenUnmanaged(domains=("pet",)),
    ]
    journal.close()


def test_after_a_hello_nothing_is_told_again_but_what_older_items_would_overwrite(path: Path) -> None:
    journal = Journal(path)
    other = VmId("vm-2")
    accept(journal, order("a"))
    journal.answer(CommandId("a"), VM, Done(observed=RUNNING))
    journal.greeted({VM: OFF, other: RUNNING}, ("pet",))
    now = Inventory(domains={VM: OFF, other: RUNNING}, configuration={}, unmanaged=("pet",))
    journal.look(now, lambda _vm: True)
    assert told(journal)[1:] == [Seen(vm=VM, observed=OFF)]
    journal.close()


def test_old_orders_are_pruned_but_never_open_or_untold_ones(path: Path) -> None:
    journal = Journal(path)
    for id in ("open", "untold", "told"):
        accept(journal, order(id))
    journal.answer(CommandId("told"), VM, Done())
    journal.confirm(journal.unconfirmed(1, 1)[0].seq, 1)
    journal.answer(CommandId("untold"), VM, Done())
    journal.prune(at=KEEP_SECONDS + 0.5)
    assert accept(journal, order("told")) == "known"
    journal.confirm(10, 1)
    journal.prune(at=KEEP_SECONDS + 2)
    assert accept(journal, order("open")) == "known"
    assert accept(journal, order("told")) == "new"
    assert KEEP_ORDERS == 100_000
    journal.close()


def test_a_journal_is_one_agents_own(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_the_files_of_a_journal_are_private(path: Path) -> None:
    journal = Journal(path)
    accept(journal, order("a"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2
    journal.close()


WORKER = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_journal import accept, order
from hostagent.journal import Journal
from vmorch.core.hostcommands import Done
from vmorch.core.ids import CommandId, VmId
directory, run = Path(sys.argv[1]), sys.argv[2]
journal = Journal(directory / "journal.sqlite")

def note(name, id):
    file = os.open(directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, id.encode() + b"\\n")
    os.close(file)

def lane(number):
    vm, count = VmId(f"vm-{{number}}"), 0
    while True:
        count += 1
        id = f"{{run}}.{{number}}.{{count}}"
        assert accept(journal, order(id, vm), vm) == "new"
        note("effects", id)
        journal.answer(CommandId(id), vm, Done())

def reporter():
    while True:
        for entry in journal.unconfirmed(7, 1 << 20):
            # the control plane records first, then the confirmation may or may not arrive
            note("recorded", entry.item.id)
            journal.confirm(entry.seq, entry.seq)

for number in range(3):
    threading.Thread(target=lane, args=(number,), daemon=True).start()
print("begun", flush=True)
reporter()
"""


def test_killed_at_any_moment_the_journal_has_an_intent_for_each_effect_and_tells_each_answer(
    tmp_path: Path,
) -> None:
    chance = random.Random(os.urandom(8))
    script = WORKER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for run in range(12):
        worker = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"begun\n", worker.communicate()
        time.sleep(chance.uniform(0, 0.15))
        worker.kill()
        worker.communicate()
        journal = Journal(tmp_path / "journal.sqlite")
        effects, recorded = _lines(tmp_path / "effects"), _lines(tmp_path / "recorded")
        open_ids = {each.id for each in journal.open_orders()}
        waiting = {item.id for item in told(journal)}  # type: ignore[attr-defined]
        assert len(effects) == len(set(effects))
        for id in effects:
            # done and told, done and to be told, or open and to be looked at; never forgotten
            assert (id in recorded) or (id in waiting) or (id in open_ids), id
        assert not open_ids & (waiting | set(recorded))
        # at most one order in each of three lanes was under way
        assert len({id for id in open_ids if id.startswith(f"{run}.")}) <= 3
        for id in open_ids:
            journal.answer(id, None, Failed(code="interrupted", message="looked"))
        assert journal.open_orders() == []
        assert {item.id for item in told(journal)} == waiting | open_ids  # type: ignore[attr-defined]
        journal.close()
    assert _lines(tmp_path / "effects")


def _lines(path: Path) -> list[CommandId]:
    return [CommandId(line) for line in path.read_text().split("\n") if line] if path.exists() else []
