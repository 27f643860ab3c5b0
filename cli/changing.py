"""Changes that are over when the API has answered: no operation, nothing to wait for. Must not know any noun."""

from collections.abc import Mapping
from typing import Any, Literal

from cli.client import accepted
from cli.output import show_document, structured
from cli.session import Session


def record(
    session: Session, path: str, body: Mapping[str, Any], said: str, *, method: Literal["POST", "PATCH"] = "POST"
) -> None:
    """Ask for the change and say that it is recorded; `said` may use {name} and {position}."""
    session.demand_reason()
    answer = session.client.change(path, body, request_id=session.request_id, method=method)
    if structured(session):
        show_document(session, answer.body)
        return
    receipt = accepted(answer)
    if session.settings.output == "name":
        session.terminal.out(receipt.name)
    elif not session.terminal.quiet:
        session.terminal.out(said.format(name=receipt.name or receipt.subject, position=receipt.position))


def show_secret(session: Session, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ask for something whose answer holds a secret, seen only now. None if it was shown as a document already."""
    import msgspec

    session.demand_reason()
    answer = session.client.change(path, body, request_id=session.request_id)
    if structured(session):
        show_document(session, answer.body)
        return None
    document: dict[str, Any] = msgspec.json.decode(answer.body)
    return document
