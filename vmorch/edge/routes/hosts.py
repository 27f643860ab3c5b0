"""Hosts: how they are used, how they are invited, how they are admitted."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.responses import Response

from vmorch.core.errors import Rejected
from vmorch.core.ids import HostId
from vmorch.core.resources import host_resource
from vmorch.core.spec import Name
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Handler
from vmorch.edge.ports import HostVerb
from vmorch.edge.routes.reading import page, state
from vmorch.engine.authority import MAX_CSR
from vmorch.engine.handle import ARGUMENTS


class InviteHost(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let a host of this name enrol once."""

    name: Name


class EnrollHost(Struct, frozen=True, kw_only=True):
    """A host shows its one-time token; `key` is the nkey public key that it signs with from now on.

    Fields that a newer agent adds are ignored.
    """

    token: Annotated[str, Meta(min_length=1, max_length=256)]
    key: Annotated[str, Meta(pattern=r"^U[A-Z2-7]{55}$")]
    machine_id: Annotated[str, Meta(min_length=1, max_length=128)]


class CertificateRequest(Struct, frozen=True, kw_only=True):
    """A host asks for a certificate: `csr` is a PKCS #10 request in PEM, signed by the new key, for the host's own
    names and addresses.

    Fields that a newer agent adds are ignored.
    """

    csr: Annotated[str, Meta(min_length=1, max_length=MAX_CSR)]


async def list_hosts(call: Call) -> Response:
    docs, at, next = await page(call, "hosts")
    return answers.listing("Host", docs, at, next)


async def show_host(call: Call) -> Response:
    fleet = await state(call)
    host = fleet.hosts.get(HostId(call.path("ref"))) or fleet.find_host(call.path("ref"))
    return answers.single("Host", host_resource(fleet, host), answers.as_of(fleet))


async def invite_host(call: Call) -> Response:
    wanted = await requests.body(call.request, InviteHost)
    receipt, token, expires = await call.services.control.invite_host(wanted.name, call.caller)
    fields = {
        "host": receipt.subject,
        "name": receipt.name,
        "token": token,
        "expires": expires,
        "position": receipt.position,
    }
    return answers.document("Invitation", fields, status=201, position=receipt.position)


async def enroll_host(call: Call) -> Response:
    peer = call.request.client.host if call.request.client else "local"
    call.services.enrolments.admit(peer)
    try:
        wanted = await requests.body(call.request, EnrollHost, limit=4096)
        enrolled = await call.services.control.enrol_host(wanted.token, wanted.key, wanted.machine_id)
    except Rejected:
        # only failures count: many hosts that come up together behind one address are welcome
        call.services.enrolments.spend(peer)
        raise
    fields = {
        "host": enrolled.host,
        "name": enrolled.name,
        "cluster": enrolled.cluster,
        "incarnation": enrolled.incarnation,
        "server_key": enrolled.server_key,
        "nats_url": enrolled.nats_url,
        "credentials": enrolled.credentials,
    }
    return answers.document("Enrolment", fields)


async def renew_credentials(call: Call) -> Response:
    if call.host is None or call.host.id != call.path("ref"):
        raise Rejected("forbidden", "a host renews its own credentials only")
    credentials = await call.services.control.renew_host(call.host.id)
    return answers.document("Credentials", {"credentials": credentials})


async def certify_host(call: Call) -> Response:
    if call.host is None or call.host.id != call.path("ref"):
        raise Rejected("forbidden", "a host asks for its own certificate only")
    wanted = await requests.body(call.request, CertificateRequest, limit=2 * MAX_CSR)
    sealed = await call.services.control.certify_host(call.host.id, wanted.csr)
    return Response(sealed, media_type="application/json")


async def revoked(call: Call) -> Response:
    return Response(call.services.control.revoked(), media_type="application/json")


def on_host(verb: HostVerb) -> Handler:
    """What answers the route of one verb."""

    async def answer(call: Call) -> Response:
        wanted = await requests.body(call.request, ARGUMENTS[verb])
        arguments = {name: value for name, value in msgspec.to_builtins(wanted).items() if value is not None}
        return answers.accepted(
            await call.services.control.on_host(call.path("ref"), verb, arguments, call.caller)
        )

    return answer


async def no_such_verb(call: Call) -> Response:
    raise Rejected(
        "no-such-verb", f"a host does not know {call.path('verb')!r}", facts={"verbs": sorted(ARGUMENTS)}
    )
