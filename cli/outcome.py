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
        _say(session, *_told(session, receipt, request, end))


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


def _told(session: Session, receipt: Accepted, request: Request, end: End) -> tuple[str, str]:
    """The name of what was changed, and one line about it."""
    name = receipt.name or receipt.subject
    verb = end.operation.verb
    if verb in ("backup", "verify-backup", "delete-backup"):
        return _told_of_backup(session, request, end)
    if request.label.startswith("volume."):
        from cli.volumes import became

        return request.name, became(request.name, verb, end.operation.vm_name)
    vm = None if verb == "delete" else end.vm or _look(session, receipt)
    if vm is not None and verb in ("snapshot", "delete-snapshot"):
        from cli import snapshots

        return snapshots.taken(vm, end.operation) if verb == "snapshot" else snapshots.deleted(vm, end.operation)
    if vm is None:
        return receipt.name or request.name, f"{name} is deleted" if verb == "delete" else f"{name}: done"
    said = _sentence(vm, end)
    if verb == "rollback":
        from cli.snapshots import way_forward

        said += way_forward(vm, end.operation)
    return receipt.name or request.name, said


def _told_of_backup(session: Session, request: Request, end: End) -> tuple[str, str]:
    from cli.backup_shapes import Backup
    from cli.backups import taken

    match end.operation.verb:
        case "verify-backup":
            return request.name, f"a VM can be had back from backup {request.name}"
        case "delete-backup":
            return request.name, f"backup {request.name} is deleted"
    try:
        found = session.client.single(f"/v1/backups/{quote(end.operation.id)}", Backup).item
    except Problem as problem:
        # it was taken; that it cannot be seen now does not change it
        session.trace(f"no summary: {problem}") if session.flags.debug else None
        return request.name, f"{request.name} is backed up"
    return found.name, taken(found)


def _sentence(vm: Vm, end: End) -> str:
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
