"""API tokens: made, listed, revoked, and what the caller's own one says."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.responses import Response

from vmorch.core.aggregates.token import RANK, Role
from vmorch.core.resources import TokenResource
from vmorch.core.spec import Name
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call
from vmorch.edge.routes.reading import page


class CreateToken(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token for somebody. `expires_in` is in seconds; without it the token holds until it is revoked. `holder` is the
    person behind the name, and only sealed in the log."""

    name: Name
    role: Role
    holder: Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")] = ""
    expires_in: Annotated[float, Meta(gt=0, le=10 * 366 * 86400)] | None = None


async def list_tokens(call: Call) -> Response:
    docs, at, next = await page(call, "tokens")
    tokens = [msgspec.json.decode(doc, type=TokenResource) for doc in docs]
    holders = await _holders(call, {token.holder for token in tokens})
    told = (msgspec.structs.replace(token, holder=holders[token.holder]) for token in tokens)
    return answers.listing("Token", map(answers.encode, told), at, next)


async def _holders(call: Call, sealed: set[str]) -> Mapping[str, str]:
    """What the caller may know of who holds tokens; that it is told is recorded first."""
    if "auditor" in RANK[call.caller.role]:
        if any(sealed):
            await call.services.control.note_reading("/v1/tokens", {}, call.caller)
        return await call.services.control.keys.reveal(sealed)
    return {each: "(sealed)" if each else "" for each in sealed}


async def create_token(call: Call) -> Response:
    wanted = await requests.body(call.request, CreateToken)
    expires = None
    if wanted.expires_in is not None:
        expires = call.services.now() + timedelta(seconds=wanted.expires_in)
    receipt, secret = await call.services.control.create_token(
        wanted.name, wanted.role, expires, call.caller, wanted.holder
    )
    fields = {
        "id": receipt.subject,
        "name": receipt.name,
        "role": wanted.role,
        "expires": expires,
        "token": secret,
        "position": receipt.position,
    }
    return answers.document("NewToken", fields, status=201, position=receipt.position)


async def revoke_token(call: Call) -> Response:
    return answers.accepted(await call.services.control.revoke_token(call.path("ref"), call.caller))


async def whoami(call: Call) -> Response:
    token = call.token
    assert token is not None
    fields = {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "roles": sorted(RANK[token.role]),
        "expires": token.expires,
        "cluster": call.services.settings.cluster,
    }
    return answers.document("Identity", fields)
