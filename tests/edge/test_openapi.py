"""The API's description: valid, complete, and about the routes that exist."""

import json

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from vmorch.core.aggregates.vm import VmCommand
from vmorch.core.messages import COMMANDS
from vmorch.edge.openapi import description
from vmorch.edge.table import ROUTES

DOCUMENT = json.loads(msgspec.json.encode(description(ROUTES, "1.2.3")))


def test_the_description_is_valid_openapi_3_1() -> None:
    assert not list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors())


def test_every_listed_route_is_described_once() -> None:
    described = sum(len(methods) for methods in DOCUMENT["paths"].values())
    assert described == sum(route.listed for route in ROUTES)
    ids = [each["operationId"] for methods in DOCUMENT["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("command", [each for each in COMMANDS.values() if issubclass(each, VmCommand)])
def test_every_registered_verb_is_described_with_its_fields(command: type[VmCommand]) -> None:
    post = DOCUMENT["paths"][f"/v1/vms/{{ref}}/{command.verb}"]["post"]
    assert post["summary"] == command.summary
    name = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    fields = {each.encode_name for each in msgspec.structs.fields(command)}
    assert set(DOCUMENT["components"]["schemas"][name]["properties"]) == fields


def test_only_what_needs_no_token_says_so() -> None:
    free = {
        (method, path)
        for path, methods in DOCUMENT["paths"].items()
        for method, each in methods.items()
        if each["security"] == []
    }
    assert free == {("get", "/healthz"), ("post", "/v1/enroll")}
