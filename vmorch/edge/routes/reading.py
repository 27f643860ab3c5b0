"""What reads have in common: the state that is asked about, waiting for a position, filters, pages.

Must not know any noun.
"""

import asyncio
from datetime import datetime

from vmorch.core.errors import Rejected
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call, Services
from vmorch.edge.ports import Model
from vmorch.views.filters import Filters
from vmorch.views.past import rows_of
from vmorch.views.rows import ids_of


async def position_of(call: Call, name: str = "asOf") -> Position:
    """The position of the moment in a parameter; now if there is none.

    Raises Rejected `bad-moment` or `future-moment`.
    """
    given = call.request.query_params.get(name, "now")
    return await call.services.history.position(given, call.services.now())


async def state(call: Call) -> Fleet:
    """Everything as of the moment that the caller asks about: the past, or what there is now."""
    if call.of_the_past:
        return await call.services.history.fleet(await position_of(call))
    await settle(call)
    return call.fleet


async def state_around_vm(call: Call, ref: str) -> Fleet:
    """As `state`, but of the past only the VM and what it refers to."""
    if call.of_the_past:
        return await call.services.history.around_vm(ref, await position_of(call))
    return await state(call)


def moment_of(call: Call, fleet: Fleet) -> datetime:
    """The time in the state that was asked about."""
    return fleet.recorded_at if call.of_the_past and fleet.recorded_at is not None else call.services.now()


def dry(call: Call) -> bool:
    """Whether the caller only asks what would be done. Raises Rejected for a change of the past."""
    wanted = requests.flag(call.request, "dryRun") is True
    if call.of_the_past and not wanted:
        raise Rejected("bad-request", "the past cannot be changed", hint="add dryRun=true (--dry-run) to ask what-if")
    return wanted


async def basis(call: Call) -> Fleet:
    """What a plan is made on: the state that the next change would be decided on, or that of the past."""
    return await state(call) if call.of_the_past else call.fleet


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
    if call.of_the_past:
        return await _page_of_the_past(call, model, wanted, limit, after)
    await settle(call)
    # one more than asked for tells whether there is a next page
    rows = await call.services.models.rows(model, wanted, limit + 1, after)
    docs, next = answers.cursor(rows.docs, limit)
    return list(docs), answers.at_position(rows.position, rows.time), next


async def _page_of_the_past(
    call: Call, model: Model, wanted: Filters, limit: int, after: str | None
) -> tuple[list[bytes], answers.AsOf, str | None]:
    history, at = call.services.history, await position_of(call)
    fleet = await (history.fleet(at) if model in ("operations", "drains") else history.standing(at))
    rows = await asyncio.to_thread(rows_of, fleet, model, wanted, after)
    docs = [(str(row["id"]), str(row["doc"]).encode()) for row in rows[: limit + 1]]
    if model in ("operations", "drains") and fleet.recorded_at is not None:
        # what was forgotten by then had its last word before, so that its row of today is its row of then
        known = list(ids_of(fleet, model))
        forgotten = await call.services.models.over(model, wanted, limit + 1, after, fleet.recorded_at, known)
        docs += [(answers.id_of(doc), doc) for doc in forgotten]
        docs.sort(key=lambda each: each[0], reverse=True)
    page, next = answers.cursor([doc for _, doc in docs[: limit + 1]], limit)
    return list(page), answers.as_of(fleet), next


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
