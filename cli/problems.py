"""What went wrong, as one value: a stable code, its facts and what to type next.

The API's problem documents, failed operations and the CLI's own refusals all become a Problem, so that they
print, exit and serialise alike. Must not print: the composition root does that once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from vmorch.core.codes import code_of

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "about:blank"
    title: str = ""
    status: int = 500
    detail: str = ""
    code: str = "internal-error"
    hint: str = ""
    facts: dict[str, Any] = {}
    instance: str = ""


class Problem(Exception):
    """A refusal or failure with a stable code. `exit_code` is the process's exit status for it."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str = "",
        facts: Mapping[str, Any] | None = None,
        instance: str = "",
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.facts = dict(facts or {})
        self.instance = instance
        self.status = code_of(code).status if status is None else status
        self.exit_code: int = code_of(code).exit

    def document(self) -> bytes:
        """The problem as an RFC 9457 document."""
        return msgspec.json.encode(
            _Document(
                type=f"urn:vmorch:error:{self.code}",
                title=code_of(self.code).title,
                status=self.status,
                detail=self.detail,
                code=self.code,
                hint=self.hint,
                facts=self.facts,
                instance=self.instance,
            )
        )


def from_document(body: bytes, status: int) -> Problem:
    """The problem that a response of this status carries; one that is no problem document still gets a code."""
    try:
        document = msgspec.json.decode(body, type=_Document)
    except msgspec.DecodeError:
        code = {401: "unauthenticated", 403: "forbidden", 404: "not-found", 413: "too-large"}.get(status)
        text = body[:200].decode(errors="replace").strip()
        return Problem(
            code or "internal-error", f"the server answered {status}: {text}".rstrip(": "), status=status
        )
    return Problem(
        document.code,
        document.detail or document.title,
        hint=document.hint,
        facts=document.facts,
        instance=document.instance,
        status=document.status,
    )


def render(problem: Problem, paint: Callable[[str, str], str]) -> list[str]:
    """The problem as lines: what, the facts in columns, what to type. `paint(style, text)` may colour."""
    head, *rest = problem.detail.splitlines() or [code_of(problem.code).title]
    lines = [f"{paint('error', f'error[{problem.code}]')}: {head}", *(f"  {line}" for line in rest)]
    lines += fact_lines(problem.facts)
    hint = problem.hint or (f"vmorch explain {problem.code}" if problem.exit_code != 2 else "")
    if hint:
        lines.append(f"{paint('dim', 'hint')}: {hint}")
    return lines


def fact_lines(facts: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """Names and values in two columns; a mapping or list inside becomes lines of its own."""
    width = max((len(str(name)) for name in facts), default=0)
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}")
            lines += fact_lines(value, indent + "  ")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines += [
                f"{indent}{str(name) if index == 0 else '':<{width}}  {_scalar(each)}"
                for index, each in enumerate(value)
            ]
        else:
            lines.append(f"{indent}{name!s:<{width}}  {_scalar(value)}".rstrip())
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
