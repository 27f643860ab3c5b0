"""API tokens: made, listed, revoked, and what the caller's own one says."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from vmorch.core.aggregates.token import RANK, Role
from vmorch.core.spec import Name
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call
from vmorch.edge.routes.reading import page


class CreateToken(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token for somebody. `expires_in` is in seconds; without it the token holds until it is revoked."""

    name: Name
    role: Role
    expires_in: Annotated[float, Meta(gt=0, le=10 * 366 * 86400)] | None = None


async def list_tokens(call: Call) -> Response:
    docs, at, next = await page(call, "tokens")
    return answers.listing("Token", docs, at, next)


async def create_token(call: Call) -> Response:
    wanted = await requests.body(call.request, CreateToken)
    expires = None
    if wanted.expires_in is not None:
        expires = call.services.now() + timedelta(seconds=wanted.expires_in)
    receipt, secret = await call.services.control.create_token(wanted.name, wanted.role, expires, call.caller)
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
