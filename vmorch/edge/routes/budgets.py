"""Budgets: how many VMs of a group may be away at once."""

from fnmatch import fnmatchcase

from starlette.responses import Response

from vmorch.core.aggregates.budget import CreateBudget
from vmorch.core.drain_resources import budget_resource
from vmorch.edge import answers, requests
from vmorch.edge.calls import Call


async def list_budgets(call: Call) -> Response:
    fleet = call.fleet
    wanted = call.request.query_params.get("name", "*")
    found = [each for each in fleet.budgets.values() if not each.deleted and fnmatchcase(each.name, wanted)]
    docs = [answers.encode(budget_resource(fleet, each)) for each in sorted(found, key=lambda each: each.name)]
    return answers.listing("Budget", docs, answers.as_of(fleet))


async def show_budget(call: Call) -> Response:
    fleet = call.fleet
    budget = fleet.budgets.get(call.path("ref")) or fleet.find_budget(call.path("ref"))
    return answers.single("Budget", budget_resource(fleet, budget), answers.as_of(fleet))


async def create_budget(call: Call) -> Response:
    command = await requests.body(call.request, CreateBudget)
    return answers.accepted(await call.services.control.drains.create_budget(command, call.caller), status=201)


async def delete_budget(call: Call) -> Response:
    return answers.accepted(await call.services.control.drains.delete_budget(call.path("ref"), call.caller))
