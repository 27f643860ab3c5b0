"""Watch an operation to its end: steps as they happen, through restarts of the server, until the operator has enough.

Must not cancel anything: going away leaves the operation running and says how to come back.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from msgspec import Struct

from cli.client import Client, decode
from cli.pace import show_copying, show_pace
from cli.problems import INTERRUPTED, Problem
from cli.shapes import Operation, Vm
from cli.terminal import Terminal
from cli.transport import Away, quote
from cli.units import show_seconds
from vmorch.core.codes import code_of

State = TypeVar("State")

AWAY_LIMIT = 300.0
"""How long a server may stay away, in seconds, before waiting for it is given up."""

_PAUSES = (0.2, 0.5, 1.0, 2.0)
_TICK = 0.2

MARKS = {"done": "ok", "failed": "!!", "undone": "<-", "undoing": "<.", "running": "..", "looking": "??"}
STYLE = {"done": "good", "failed": "bad", "undone": "warn", "undoing": "warn", "running": "dim", "looking": "warn"}


class Left(Exception):
    """The operator stopped waiting. `going_on` are the operations (or drains: `noun`) he left, `not_begun` what was
    never asked for."""

    exit_code = INTERRUPTED
    why = ""

    def __init__(self, going_on: list[str], *, not_begun: Sequence[str] = (), noun: str = "op") -> None:
        super().__init__(self.why)
        self.going_on = going_on
        self.noun = noun
        self.not_begun = not_begun


class Detached(Left):
    """He typed Ctrl-C."""

    why = "Detached"


class Overdue(Left):
    """His --timeout passed."""

    exit_code = 8
    why = "timeout"


def farewell(left: Left) -> list[str]:
    """What goes on without him and how to come back, as lines."""
    noun = left.noun
    lines = [f"{left.why}: {noun} {id} still runs. Nothing was cancelled." for id in left.going_on]
    if left.not_begun:
        lines.append(f"{left.why}: not asked for any more: {', '.join(left.not_begun)}")
    return lines + [f"hint: vmorch {noun} watch {id} | vmorch {noun} cancel {id}" for id in left.going_on]


class End(Struct, frozen=True):
    """An operation that is over, and its VM as it was then if the server told."""

    operation: Operation
    vm: Vm | None = None


def changes(client: Client, id: str, on_away: Callable[[str], None]) -> Iterator[Operation | Vm]:
    """The operation at each change, the last one being its end; before that the VM. Reconnects by itself.

    Raises Problem: `no-such-operation`, or `server-unreachable` after AWAY_LIMIT without a word.
    """
    shapes: dict[str, type[Operation | Vm]] = {"operation": Operation, "vm": Vm}
    for change in states(client, f"/v1/operations/{quote(id)}/watch", shapes, on_away):
        yield change
        if isinstance(change, Operation) and change.over:
            return


def states(
    client: Client, path: str, shapes: Mapping[str, type[State]], on_away: Callable[[str], None]
) -> Iterator[State]:
    """What a stream tells, by the names of its events, until whoever reads it has seen the end. Reconnects by itself.

    Raises Problem: `server-unreachable` after AWAY_LIMIT without a word.
    """
    failures = 0
    heard = time.monotonic()
    while True:
        try:
            with closing(client.stream(path)) as events:
                for event in events:
                    failures, heard = 0, time.monotonic()
                    shape = shapes.get(event.event)
                    if shape is not None:
                        yield decode(event.data.encode(), shape)
            away = Away(client.transport.address, "the stream ended")
        except Away as error:
            away = error
        except Problem as problem:
            # a server that is just starting up, or one that is no longer the leader
            if problem.status != 503:
                raise
            away = Away(client.transport.address, problem.detail)
        if time.monotonic() - heard > AWAY_LIMIT:
            raise away
        # a server that only ended the stream is there; the first pause is not worth a word
        if failures:
            on_away(away.why)
        time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
        failures += 1


def follow_one(
    client: Client,
    terminal: Terminal,
    id: str,
    path: str,
    shapes: Mapping[str, type[State]],
    *,
    noun: str,
    timeout: float | None,
    title: str,
    show: Callable[[State], None],
    over: Callable[[State], bool],
) -> State:
    """Show each state that a stream tells until one is over, and give that one. Raises Detached, Overdue, Problem."""
    arrivals: queue.Queue[State | BaseException] = queue.Queue()
    told_away = threading.Event()

    def on_away(why: str) -> None:
        if not told_away.is_set():
            told_away.set()
            terminal.note(f"  ..  the server is away ({why}); what it began goes on, waiting")

    def listen() -> None:
        try:
            for state in states(client, path, shapes, on_away):
                arrivals.put(state)
                if over(state):
                    return
        except BaseException as error:
            arrivals.put(error)

    if title:
        terminal.note(title + ("   Ctrl-C detaches" if terminal.live else ""))
    began = time.monotonic()
    threading.Thread(target=listen, name=f"watch {id}", daemon=True).start()
    try:
        while True:
            try:
                arrival = arrivals.get(timeout=_TICK)
            except queue.Empty:
                if timeout is not None and time.monotonic() - began > timeout:
                    raise Overdue([id], noun=noun) from None
                continue
            if isinstance(arrival, BaseException):
                raise arrival
            show(arrival)
            if over(arrival):
                return arrival
    except KeyboardInterrupt:
        raise Detached([id], noun=noun) from None
    finally:
        terminal.clear_live()


def wait_for_end(client: Client, id: str, on_away: Callable[[str], None]) -> Operation:
    """The operation at its end."""
    for change in changes(client, id, on_away):
        if isinstance(change, Operation) and change.over:
            return change
    raise AssertionError("changes end with the operation's end")


class _Steps:
    """Prints each step once, when it is over; the running one on the moving line."""

    def __init__(self, terminal: Terminal, began: float) -> None:
        self._terminal = terminal
        self._began = began
        self._since: dict[tuple[int, str], float] = {}
        self._told: set[tuple[int, str]] = set()
        self._running: tuple[str, float] | None = None
        self._pace = ""
        self._first = True

    def show(self, operation: Operation, now: float) -> None:
        """What is new in this state of the operation."""
        width = max((len(step.label) for step in operation.steps), default=0)
        self._running = None
        show = show_copying if operation.verb == "backup" else show_pace
        self._pace = f"  {show(operation.pace)}" if operation.pace is not None else ""
        # while undoing, the last step comes back first
        undoing = any(step.state in ("undone", "undoing") for step in operation.steps)
        for step in reversed(operation.steps) if undoing else operation.steps:
            key = (step.index, step.state)
            began = self._since.setdefault(
                (step.index, "failed" if step.state == "undone" else "running"), now
            )
            if step.state == "waiting":
                del self._since[(step.index, "running")]
                continue
            if step.state in ("running", "looking", "undoing"):
                mark = self._terminal.paint_note(STYLE[step.state], MARKS[step.state])
                self._running = (f"  {mark}  {step.label:<{width}}  {step.host}", began)
                continue
            if key in self._told:
                continue
            self._told.add(key)
            # steps that were over when we came have no duration that we could know
            took = "" if self._first or began == now else f"  {show_seconds(now - began)}"
            mark = self._terminal.paint_note(STYLE.get(step.state, ""), MARKS.get(step.state, step.state))
            self._terminal.note(f"  {mark}  {step.label:<{width}}  {step.host}{took}".rstrip())
        self._first = False
        self.tick(now)

    def tick(self, now: float) -> None:
        """Move the clock of the running step."""
        if self._running is not None:
            text, began = self._running
            self._terminal.show_live(f"{text}  {show_seconds(now - began)}{self._pace}")


def follow(client: Client, terminal: Terminal, id: str, *, timeout: float | None, title: str = "") -> End:
    """Show the operation until its end and return that. Raises Detached, Overdue, Problem."""
    arrivals: queue.Queue[Operation | Vm | BaseException] = queue.Queue()
    told_away = threading.Event()

    def on_away(why: str) -> None:
        if not told_away.is_set():
            told_away.set()
            terminal.note(
                f"  ..  the server is away ({why}); the operation does not need it to be watched, waiting"
            )

    def listen() -> None:
        try:
            for change in changes(client, id, on_away):
                arrivals.put(change)
        except BaseException as error:
            arrivals.put(error)

    if title:
        terminal.note(title)
    began = time.monotonic()
    steps = _Steps(terminal, began)
    vm: Vm | None = None
    threading.Thread(target=listen, name=f"watch {id}", daemon=True).start()
    try:
        while True:
            try:
                arrival = arrivals.get(timeout=_TICK)
            except queue.Empty:
                if timeout is not None and time.monotonic() - began > timeout:
                    raise Overdue([id]) from None
                steps.tick(time.monotonic())
                continue
            if isinstance(arrival, BaseException):
                raise arrival
            if isinstance(arrival, Vm):
                vm = arrival
                continue
            steps.show(arrival, time.monotonic())
            if arrival.over:
                return End(arrival, vm)
    except KeyboardInterrupt:
        raise Detached([id]) from None
    finally:
        terminal.clear_live()


_HINTS = {
    "guest-did-not-stop": "vmorch vm stop {vm} --force",
    "not-ready": "vmorch vm describe {vm}",
    "host-silent": "vmorch doctor",
    "libvirt-away": "vmorch doctor",
    "no-domain": "vmorch vm describe {vm}",
    "disk-full": "vmorch host list -o wide",
    "freeze-failed": "vmorch vm snapshot create {vm}   (without --quiesce: as after a power cut)",
    "thaw-failed": "vmorch vm reboot {vm} --force, or in the guest: fsfreeze --unfreeze PATH",
    "memory-damaged": "vmorch vm snapshot list {vm}",
}


def failure(operation: Operation) -> Problem | None:
    """Why the operation did not reach its end, as a problem; None if it succeeded."""
    if operation.state == "succeeded":
        return None
    code = operation.code or ("cancelled" if operation.state == "cancelled" else "internal-error")
    facts: dict[str, object] = {}
    failed = next((step for step in operation.steps if step.state in ("failed", "running")), None)
    if failed is not None:
        facts["step"] = f"{failed.label} on {failed.host}" if failed.host else failed.label
    facts["outcome"] = {
        "undone": "what it had done was taken back",
        "cancelled": "cancelled; what it had done was taken back",
        "stuck": "stopped here; what it had done is still in place",
    }.get(operation.state, operation.state)
    facts["operation"] = operation.id
    said = operation.message or operation.state
    if operation.blockers:
        facts["blockers"] = operation.blockers
        # a line for each, instead of all of them in one
        said = code_of(code).title if said.startswith(operation.blockers[0]) else said
    what = f"{operation.verb} {operation.vm_name or operation.vm}"
    hint = _HINTS.get(code, "")
    return Problem(
        code,
        f"{what}: {said}",
        hint=hint.format(vm=operation.vm_name or operation.vm),
        facts=facts,
        instance=operation.id,
    )
