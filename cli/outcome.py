"""What comes of one change after the API accepted it: its steps, its end, a sentence about the VM.

Imported while the server works already.
"""

from cli.changes import Request, Waiting
from cli.client import accepted
from cli.follow import End, failure, follow
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Accepted, Vm
from cli.transport import Answer, quote


def see_through(session: Session, request: Request, answer: Answer, waiting: Waiting) -> None:
    """Stay until the change is carried out and tell what became of it. Raises Problem, Detached, Overdue."""
    receipt = accepted(answer)
    if receipt.operation is None or waiting.detach:
        _show_receipt(session, receipt, request, answer.body)
        return
    title = f"op {receipt.operation}  {request.label} {receipt.name or request.name}"
    if session.terminal.live:
        title += "   Ctrl-C detaches"
    end = follow(session.client, session.terminal, receipt.operation, timeout=waiting.timeout, title=title)
    if structured(session):
        show_document(session, session.client.get(f"/v1/operations/{quote(end.operation.id)}").body)
    problem = failure(end.operation)
    if problem is not None:
        raise problem
    if not structured(session):
        _say(session, receipt.name or request.name, _sentence(session, receipt, end))


def _show_receipt(session: Session, receipt: Accepted, request: Request, body: bytes) -> None:
    name = receipt.name or request.name
    if structured(session):
        show_document(session, body)
    elif receipt.operation is not None:
        _say(session, receipt.operation, f"op {receipt.operation}  {request.label} {name}")
        session.terminal.note(f"hint: vmorch op watch {receipt.operation}")
    else:
        _say(session, name, f"{receipt.name or receipt.subject}: recorded (event {receipt.position})")


def _say(session: Session, name: str, sentence: str) -> None:
    if session.settings.output == "name":
        session.terminal.out(name)
    elif not session.terminal.quiet and sentence:
        session.terminal.out(sentence)


def _sentence(session: Session, receipt: Accepted, end: End) -> str:
    """One line about the VM after the change."""
    name = receipt.name or receipt.subject
    if end.operation.verb == "delete":
        return f"{name} is deleted"
    vm = end.vm or _look(session, receipt)
    if vm is None:
        return f"{name}: done"
    where = f" on {vm.host}" if vm.host else ""
    at = f" at {', '.join(vm.addresses)}" if vm.addresses and vm.state == "running" else ""
    later = f"; from its next start: {', '.join(vm.pending)}" if vm.pending else ""
    pause = end.operation.pause
    stood = "" if pause is None else f"; its guest stood still for {pause * 1000:.0f}ms"
    return f"{vm.name} is {vm.state}{where}{at}{stood}{later}"


def _look(session: Session, receipt: Accepted) -> Vm | None:
    """The VM, from a server that did not tell it at the operation's end."""
    id = receipt.subject.rpartition("/")[2]
    try:
        return session.client.single(f"/v1/vms/{quote(id or receipt.name)}", Vm).item
    except Problem as problem:
        # the operation succeeded; that the VM is gone or the server away by now does not change it
        session.trace(f"no summary: {problem}") if session.flags.debug else None
        return None
