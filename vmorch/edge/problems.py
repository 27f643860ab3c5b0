"""Refusals and faults as problem documents (RFC 9457), each under its stable code.

Must not tell a caller anything about a fault but the request id under which the server's log has it.
"""

from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response

from vmorch.core.codes import code_of
from vmorch.core.errors import Rejected
from vmorch.log.errors import ArchiveDamaged, ArchiveMissing, LogUnavailable, NameTaken, VersionConflict

TYPES = "https://vmorch.dev/errors/"
MEDIA_TYPE = "application/problem+json"


class Problem(Struct, frozen=True, kw_only=True):
    """Why a request was not done. `instance` is the request's id; `hint` is what to type next."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    facts: dict[str, Any]
    instance: str


def problem_of(refusal: Rejected, request: str) -> Problem:
    """The document of a refusal."""
    code = code_of(refusal.code)
    return Problem(
        type=TYPES + refusal.code,
        title=code.title,
        status=code.status,
        detail=refusal.reason,
        code=refusal.code,
        hint=refusal.hint,
        facts=refusal.facts,
        instance=request,
    )


def response_of(refusal: Rejected, request: str) -> Response:
    """The response of a refusal."""
    problem = problem_of(refusal, request)
    headers = {"WWW-Authenticate": 'Bearer realm="vmorch"'} if problem.status == 401 else None
    return Response(msgspec.json.encode(problem), problem.status, headers, MEDIA_TYPE)


def refusal_of(error: BaseException) -> Rejected | None:
    """The log's answer in the API's words; None if it is a fault of ours."""
    match error:
        case ArchiveMissing() | ArchiveDamaged():
            return Rejected(error.code, str(error), hint="on the server: vmorch server archive list")
        case LogUnavailable():
            return Rejected("log-unavailable", str(error), hint="repeat it with the same request id (--request-id)")
        case VersionConflict():
            return Rejected("version-conflict", str(error))
        case NameTaken():
            return Rejected("name-taken", str(error))
        case _:
            return None


def fault() -> Rejected:
    """What a caller is told of a fault."""
    return Rejected("internal-error", "the server's log has the cause under this request id")
