"""Carry a change through: ask, wait, report; one VM with its steps, several side by side.

Must not decide whether a change is allowed: the API does, and its refusals are shown as they come.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cli import table
from cli.client import accepted, planned
from cli.follow import Detached, Overdue, failure, follow, wait_for_end
from cli.output import show_document, structured
from cli.problems import Problem, render
from cli.session import Session
from cli.shapes import Accepted, Operation, Plan, Verdict, Vm, VmRow
from cli.transport import quote

DIFFERENCES = 10
SOME_FAILED = 9


class Waiting(Struct, frozen=True, kw_only=True):
    """How long the operator stays."""

    detach: bool = False
    timeout: float | None = None


class Request(Struct, frozen=True, kw_only=True):
    """A change to ask for: `label` names it to people, such as `vm.stop`."""

    label: str
    name: str
    path: str
    body: Mapping[str, Any]
    request_id: str


Summary = Callable[[Session, Accepted, Operation | None], str]


def carry_out(session: Session, request: Request, waiting: Waiting, summary: Summary) -> None:
    """One change, watched to its end. Raises Problem when it is refused or fails, Detached, Overdue."""
    try:
        answer = session.client.change(request.path, request.body, request_id=request.request_id)
    except KeyboardInterrupt:
        session.terminal.complain(
            "Interrupted while asking: it is not known whether the request arrived.\n"
            f"hint: repeat it with --request-id {request.request_id}; that cannot do it twice"
        )
        raise
    receipt = accepted(answer)
    if receipt.operation is None or waiting.detach:
        _show_receipt(
            session, receipt, request, answer.body, detached=receipt.operation is not None, summary=summary
        )
        return
    title = f"op {receipt.operation}  {request.label} {receipt.name or request.name}"
    if session.terminal.live:
        title += "   Ctrl-C detaches"
    operation = follow(
        session.client, session.terminal, receipt.operation, timeout=waiting.timeout, title=title
    )
    if structured(session):
        show_document(session, session.client.get(f"/v1/operations/{quote(operation.id)}").body)
    problem = failure(operation)
    if problem is not None:
        raise problem
    if not structured(session):
        _say(session, receipt.name or request.name, summary(session, receipt, operation))


def _show_receipt(
    session: Session, receipt: Accepted, request: Request, body: bytes, *, detached: bool, summary: Summary
) -> None:
    if structured(session):
        show_document(session, body)
    elif detached:
        _say(
            session,
            str(receipt.operation),
            f"op {receipt.operation}  {request.label} {receipt.name or request.name}",
        )
        session.terminal.note(f"hint: vmorch op watch {receipt.operation}")
    else:
        _say(session, receipt.name or request.name, summary(session, receipt, None))


def _say(session: Session, name: str, sentence: str) -> None:
    if session.settings.output == "name":
        session.terminal.out(name)
    elif not session.terminal.quiet and sentence:
        session.terminal.out(sentence)


def show_plan(session: Session, request: Request) -> int:
    """What the change would do. Returns the exit status for "there is a difference"."""
    answer = session.client.change(request.path, request.body, request_id=request.request_id, dry_run=True)
    if structured(session):
        show_document(session, answer.body)
        return DIFFERENCES
    plan = planned(answer)
    session.terminal.out("\n".join(plan_lines(plan, request, session.terminal.paint)))
    session.terminal.note("Nothing was changed.")
    return DIFFERENCES


def plan_lines(plan: Plan, request: Request, paint: table.Paint) -> list[str]:
    """A plan for reading."""
    at = f" at {plan.position}" if plan.position else ""
    found = [f"Plan of {request.label} {request.name}{at}" + (f": on {plan.host}" if plan.host else "")]
    if plan.steps:
        found.append("Steps")
        found += [f"  {index}  {label}" for index, label in enumerate(plan.steps, 1)]
    else:
        found.append("No host is involved; only the record changes.")
    if plan.verdicts:
        found.append("Hosts")
        found += [f"  {line}" for line in table.lines(_VERDICTS, plan.verdicts, paint=paint)]
    return found


_VERDICTS: list[table.Column[Verdict]] = [
    table.Column(header="NAME", cell=lambda verdict: verdict.name),
    table.Column(
        header="FITS",
        cell=lambda verdict: "yes" if verdict.fits else "no",
        style=lambda verdict: "good" if verdict.fits else "bad",
    ),
    table.Column(
        header="SCORE", cell=lambda verdict: f"{verdict.score:.1f}" if verdict.fits else "-", right=True
    ),
    table.Column(header="WHY", cell=lambda verdict: verdict.reason),
]


def choose(session: Session, names: Sequence[str], selector: Mapping[str, str]) -> list[str]:
    """The VMs meant by names, globs, `-` (names on stdin) and labels, each once.

    Raises Problem: `no-such-vm` for a pattern that matches nothing, so that a typo is never a success;
    `bad-request` for a plain name beside a selector, which could mean either.
    """
    plain = [name for name in names if not any(letter in name for letter in "*?[")]
    if plain and selector:
        raise Problem(
            "bad-request",
            f"-l chooses among VMs, but {plain[0]} is named outright",
            hint="give patterns such as '*' with -l, or names without it",
        )
    meant: dict[str, None] = {}
    for name in names:
        if name == "-":
            import sys

            meant.update(dict.fromkeys(sys.stdin.read().split()))
        elif any(letter in name for letter in "*?["):
            meant.update(dict.fromkeys(_matching(session, name, selector)))
        else:
            meant[name] = None
    if selector and not names:
        meant.update(dict.fromkeys(_matching(session, None, selector)))
    return list(meant)


def _matching(session: Session, pattern: str | None, selector: Mapping[str, str]) -> list[str]:
    query = {"name": pattern, "label": [f"{key}={value}" for key, value in selector.items()]}
    found = [vm.name for page in session.client.pages("/v1/vms", query, VmRow) for vm in page.items]
    if not found:
        what = " and ".join(
            [*([repr(pattern)] if pattern else []), *(f"{key}={value}" for key, value in selector.items())]
        )
        raise Problem("no-such-vm", f"no VM matches {what}", hint="vmorch vm list")
    return found


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
    """Several changes side by side, each told when it is over; none stops the others.

    Exits 9 if some of them failed. Raises Detached, Overdue.
    """
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
    import time

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


def vm_summary(session: Session, receipt: Accepted, operation: Operation | None) -> str:
    """One line about the VM after the change."""
    name = receipt.name or receipt.subject
    if operation is not None and operation.verb == "delete":
        return f"{name} is deleted"
    if operation is None:
        return f"{name}: recorded (event {receipt.position})"
    id = receipt.subject.rpartition("/")[2]
    try:
        vm = session.client.single(f"/v1/vms/{quote(id or name)}", Vm).item
    except Problem as problem:
        # the operation succeeded; that the VM is gone or the server away by now does not change it
        session.trace(f"no summary: {problem}") if session.flags.debug else None
        return f"{name}: done"
    where = f" on {vm.host}" if vm.host else ""
    at = f" at {', '.join(vm.addresses)}" if vm.addresses and vm.state == "running" else ""
    later = f"; from its next start: {', '.join(vm.pending)}" if vm.pending else ""
    return f"{vm.name} is {vm.state}{where}{at}{later}"
