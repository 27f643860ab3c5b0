"""Budgets: how many VMs of a group may be away at once."""

from fnmatch import fnmatchcase

from starlette.responses import Response

from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.drain_resources import budget_resource
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call
from vmorch.edge.routes.reading import state


async def list_budgets(call: Call) -> Response:
    fleet, given = await state(call), call.request.query_params
    wanted, after, limit = given.get("name", "*"), given.get("after", ""), requests.limit(call.request)
    found = [each for each in fleet.budgets.values() if not each.deleted and fnmatchcase(each.name, wanted)]
    later = sorted((each for each in found if f"{each.name}/{each.id}" > after), key=lambda each: each.name)
    docs = [answers.encode(budget_resource(fleet, each)) for each in later[: limit + 1]]
    page, next = answers.cursor(docs, limit)
    return answers.listing("Budget", page, answers.as_of(fleet), next)


async def show_budget(call: Call) -> Response:
    fleet = await state(call)
    budget = fleet.budgets.get(call.path("ref")) or fleet.find_budget(call.path("ref"))
    return answers.single("Budget", budget_resource(fleet, budget), answers.as_of(fleet))


async def create_budget(call: Call) -> Response:
    command = await requests.body(call.request, CreateBudget)
    return answers.accepted(await call.services.control.drains.create_budget(command, call.caller), status=201)


async def delete_budget(call: Call) -> Response:
    return answers.accepted(await call.services.control.drains.delete_budget(call.path("ref"), call.caller))
