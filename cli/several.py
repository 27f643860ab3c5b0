"""Carry several changes out side by side, each told when it is over; none stops the others."""

import queue
import threading
import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from cli.changes import Request, Waiting
from cli.client import accepted
from cli.follow import Detached, Overdue, failure, wait_for_end
from cli.output import show_document, structured
from cli.problems import Problem, render
from cli.session import Session
from cli.shapes import Accepted

SOME_FAILED = 9


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one of several changes."""

    name: str
    ok: bool
    operation: str | None = None
    position: int | None = None
    problem: msgspec.Raw | None = None


def carry_out_all(
    session: Session, requests: Sequence[Request], waiting: Waiting, *, max_parallel: int
) -> None:
    """Carry them out. Exits 9 if some of them failed. Raises Detached, Overdue."""
    todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
    for request in requests:
        todo.put(request)
    told: queue.Queue[tuple[Request, Accepted | None, Problem | None]] = queue.Queue()
    running: dict[str, None] = {}

    def work() -> None:
        while True:
            try:
                request = todo.get_nowait()
            except queue.Empty:
                return
            told.put(_one(session, request, waiting, running))

    # made here, in one thread: the session makes its parts when first asked
    terminal, _ = session.terminal, session.client
    for _index in range(min(max_parallel, len(requests))):
        threading.Thread(target=work, daemon=True).start()
    results: list[Result] = []
    width = max(len(request.name) for request in requests)
    began = time.monotonic()
    try:
        while len(results) < len(requests):
            left = None if waiting.timeout is None else began + waiting.timeout - time.monotonic()
            if left is not None and left <= 0:
                raise Overdue(list(running), not_begun=_drain(todo))
            try:
                request, receipt, problem = told.get(timeout=min(0.2, left or 0.2))
            except queue.Empty:
                terminal.show_live(f"  ..  {len(results)} of {len(requests)} done")
                continue
            results.append(_result(request, receipt, problem))
            _tell(session, request, receipt, problem, width, detached=waiting.detach)
    except KeyboardInterrupt:
        raise Detached(list(running), not_begun=_drain(todo)) from None
    finally:
        terminal.clear_live()
    _finish(session, results)


def _drain(todo: queue.SimpleQueue[Request]) -> list[str]:
    """Take back what no worker has begun, and name it."""
    found: list[str] = []
    while True:
        try:
            found.append(todo.get_nowait().name)
        except queue.Empty:
            return found


def _one(
    session: Session, request: Request, waiting: Waiting, running: dict[str, None]
) -> tuple[Request, Accepted | None, Problem | None]:
    receipt: Accepted | None = None
    try:
        receipt = accepted(session.client.change(request.path, request.body, request_id=request.request_id))
        if receipt.operation is None or waiting.detach:
            return request, receipt, None
        running[receipt.operation] = None
        operation = wait_for_end(session.client, receipt.operation, lambda why: None)
        running.pop(receipt.operation, None)
        return request, receipt, failure(operation)
    except Problem as problem:
        return request, receipt, problem


def _result(request: Request, receipt: Accepted | None, problem: Problem | None) -> Result:
    return Result(
        name=request.name,
        ok=problem is None,
        operation=receipt.operation if receipt else None,
        position=receipt.position if receipt else None,
        problem=None if problem is None else msgspec.Raw(problem.document()),
    )


def _tell(
    session: Session,
    request: Request,
    receipt: Accepted | None,
    problem: Problem | None,
    width: int,
    *,
    detached: bool,
) -> None:
    terminal = session.terminal
    if problem is not None:
        if not structured(session):
            mark = terminal.paint_note("bad", "!!")
            terminal.complain(
                f"  {mark}  {request.name:<{width}}  " + "\n      ".join(render(problem, _plain))
            )
        return
    if session.settings.output == "name":
        terminal.out(request.name)
    operation = f"  op {receipt.operation}" if receipt and receipt.operation and detached else ""
    terminal.note(f"  {terminal.paint_note('good', 'ok')}  {request.name:<{width}}{operation}".rstrip())


def _plain(style: str, text: str) -> str:
    return text


def _finish(session: Session, results: Sequence[Result]) -> None:
    failed = sum(not result.ok for result in results)
    if structured(session):
        document = {"apiVersion": "v1", "kind": "Results", "items": list(results)}
        show_document(session, msgspec.json.encode(document))
    session.terminal.note(
        f"{len(results) - failed} of {len(results)} done" + (f", {failed} failed" if failed else "")
    )
    if failed:
        raise SystemExit(SOME_FAILED)
