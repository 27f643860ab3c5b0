"""What reads have in common: waiting for a position, filters, pages.

Must not know any noun.
"""

import asyncio

from vmorch.core.ids import Position
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Services
from vmorch.edge.ports import Model
from vmorch.views.filters import Filters


async def settle(call: Call) -> None:
    """Wait, a bounded time, until the read models have reached the position that the caller asks for, or else
    what this server knows now: whoever was told of a change finds it in the next list.

    A caller sees in `asOf` whether they did.
    """
    control, settings = call.services.control, call.services.settings
    wanted = requests.position(call.request, "minPosition")
    if wanted is None:
        await control.settled(control.fleet.position, settings.catch_up)
    else:
        await control.settled(wanted, settings.settle)


async def caught_up(services: Services, position: Position) -> None:
    """Wait until the live state has the position of an append of ours. Raises TimeoutError."""
    if services.control.fleet.position >= position:
        return
    async with asyncio.timeout(services.settings.settle):
        async for at in services.control.changes():
            if at >= position:
                return


async def page(call: Call, model: Model) -> tuple[list[bytes], answers.AsOf, str | None]:
    """A page of a read model, filtered as the caller asks."""
    limit = requests.limit(call.request)
    after = call.request.query_params.get("after")
    wanted = _filters(call)
    await settle(call)
    # one more than asked for tells whether there is a next page
    rows = await call.services.models.rows(model, wanted, limit + 1, after)
    docs, next = answers.cursor(rows.docs, limit)
    return list(docs), answers.at_position(rows.position, rows.time), next


def _filters(call: Call) -> Filters:
    given = call.request.query_params
    return Filters(
        name=given.get("name"),
        host=given.get("host"),
        state=given.get("state"),
        labels=requests.labels(call.request),
        vm=given.get("vm"),
        verb=given.get("verb"),
        actor=given.get("actor"),
        active=requests.flag(call.request, "active"),
        started=requests.flag(call.request, "started"),
    )
