"""An answer in the form that was asked for. JSON is the API's document as it came; tables are ours and may change.

Must not fetch anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from cli.problems import Problem
from cli.session import Session
from cli.table import Column, lines

Row = TypeVar("Row")


def as_csv(session: Session) -> bool:
    """Whether the answer is for a spreadsheet."""
    return session.settings.output == "csv" and session.flags.query is None


def structured(session: Session) -> bool:
    """Whether the answer is for programs. Raises Problem for CSV, which only lists come as."""
    if as_csv(session):
        raise Problem("bad-request", "this is no list: only lists come as CSV", hint="add -o json")
    return session.flags.query is not None or session.settings.output in ("json", "jsonl", "yaml")


def show_document(session: Session, body: bytes) -> None:
    """A document of the API in the structured form asked for."""
    output = session.settings.output
    if session.flags.query is not None:
        body = msgspec.json.encode(_queried(session.flags.query, body))
    if output == "yaml":
        session.terminal.out(_yaml(body))
    elif output == "jsonl":
        for item in _items(body):
            session.terminal.out_bytes(bytes(item) + b"\n")
    else:
        session.terminal.out_bytes(msgspec.json.format(body, indent=2) + b"\n")


def show_rows(
    session: Session,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    name: Callable[[Row], str],
    *,
    headers: bool = True,
) -> None:
    """Rows as a table, or as their names only."""
    output = session.settings.output
    if output == "csv":
        session.terminal.out_bytes(_csv(columns, rows, headers=headers))
        return
    if output == "name":
        if rows:
            session.terminal.out("\n".join(name(row) for row in rows))
        return
    if not rows:
        return
    text = lines(columns, rows, wide=output == "wide", headers=headers, paint=session.terminal.paint)
    session.terminal.out("\n".join(text))


def _csv(columns: Sequence[Column[Row]], rows: Sequence[Row], *, headers: bool) -> bytes:
    """All columns, the wide ones too, as RFC 4180 has it."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    if headers:
        writer.writerow([column.header for column in columns])
    writer.writerows([_unformulaic(column.cell(row)) for column in columns] for row in rows)
    return text.getvalue().encode()


def _unformulaic(text: str) -> str:
    """What a spreadsheet would compute is shown to it as text (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and text != "-") else text


def merge_pages(bodies: Sequence[bytes]) -> bytes:
    """Several pages of one list as the one document that a single page would have been."""
    if len(bodies) == 1:
        return bodies[0]
    documents = [msgspec.json.decode(body, type=dict[str, msgspec.Raw]) for body in bodies]
    items = [
        item
        for document in documents
        for item in msgspec.json.decode(document["items"], type=list[msgspec.Raw])
    ]
    last = documents[-1].get("next", msgspec.Raw(b"null"))
    return msgspec.json.encode({**documents[0], "items": items, "next": last})


def _items(body: bytes) -> list[msgspec.Raw]:
    """The items of a list document or of a list; anything else is its own single item. Each on one line."""
    compact = msgspec.json.format(body, indent=-1)
    if compact.startswith(b"["):
        return msgspec.json.decode(compact, type=list[msgspec.Raw])
    if compact.startswith(b"{"):
        document = msgspec.json.decode(compact, type=dict[str, msgspec.Raw])
        if "items" in document:
            return msgspec.json.decode(document["items"], type=list[msgspec.Raw])
    return [msgspec.Raw(compact)]


def _queried(expression: str, body: bytes) -> Any:
    try:
        import jmespath
    except ImportError as error:
        raise _missing("--query", "jmespath") from error
    try:
        return jmespath.search(expression, msgspec.json.decode(body))
    except jmespath.exceptions.JMESPathError as error:
        raise Problem("bad-request", f"--query: {error}", hint="see https://jmespath.org") from error


def _yaml(body: bytes) -> str:
    try:
        import yaml
    except ImportError as error:
        raise _missing("-o yaml", "PyYAML") from error
    text: str = yaml.safe_dump(msgspec.json.decode(body), sort_keys=False, allow_unicode=True)
    return text


def _missing(what: str, library: str) -> Problem:
    return Problem(
        "bad-request", f"{what} needs {library}, which is not installed", hint="pip install 'vmorch[cli]'"
    )
