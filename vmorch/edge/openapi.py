"""The API's description (OpenAPI 3.1), computed from the table of routes and the types of what it carries.

Must not describe anything by hand that a type or the table says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from vmorch.core.codes import CODES
from vmorch.edge.calls import Parameter, Route
from vmorch.edge.problems import MEDIA_TYPE, Problem
from vmorch.edge.routes.cluster import Check
from vmorch.edge.routes.documents import RESOURCES
from vmorch.edge.shapes import REFERENCE, ref

_PLACEHOLDER = re.compile(r"{(\w+)}")


def description(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    listed = [route for route in routes if route.listed]
    types = [*RESOURCES.values(), Problem, Check, *(route.body for route in listed if route.body is not None)]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    named = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in listed:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vmorch",
            "version": version,
            "summary": "Event-sourced orchestrator of virtual machines",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Problem": _problem()},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "host": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Vmorch-Signature",
                    "description": "base64 of the host key's signature of 'METHOD PATH TIME', beside"
                    " X-Vmorch-Host and X-Vmorch-Time (unix seconds)",
                },
            },
        },
    }


def _path(route: Route) -> str:
    # two routes may call the same place by different names; a description may not
    return _PLACEHOLDER.sub(lambda found: "{ref}" if route.path.endswith("/content") else found[0], route.path)


def _operation(route: Route, named: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    content = {route.media_type: {"schema": route.answer}}
    answers: dict[str, Any] = {str(route.status): {"description": route.summary, "content": content}}
    if any(each.name == "dryRun" for each in route.parameters):
        answers["200"] = {"description": "The plan", "content": content}
    found: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.path.strip("/").split("/")[1] if route.path.startswith("/v1/") else "health"],
        "parameters": [*_in_path(route), *(_in_query(each) for each in route.parameters)],
        "responses": {**answers, "default": {"$ref": "#/components/responses/Problem"}},
        "security": _security(route),
    }
    if route.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": named[route.body]}}}
    if route.upload:
        binary = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": binary}}
    return found


def _operation_id(route: Route) -> str:
    words = [_PLACEHOLDER.sub(r"by-\1", part) for part in route.path.removeprefix("/v1").strip("/").split("/")]
    return "-".join([route.method.lower(), *words]).replace(".json", "")


def _security(route: Route) -> list[dict[str, list[str]]]:
    match route.access:
        case "anyone":
            return []
        case "host":
            return [{"host": []}]
        case "host or operator":
            return [{"token": []}, {"host": []}]
        case _:
            return [{"token": []}]


def _in_path(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACEHOLDER.findall(_path(route))
    ]


def _in_query(parameter: Parameter) -> dict[str, Any]:
    schema = {"type": "array", "items": parameter.schema} if parameter.repeats else parameter.schema
    return {"name": parameter.name, "in": "query", "description": parameter.about, "schema": schema}


def _problem() -> dict[str, Any]:
    codes = {"type": "string", "examples": sorted(CODES)}
    schema = {"allOf": [ref(Problem), {"type": "object", "properties": {"code": codes}}]}
    return {
        "description": "Why it was not done (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": schema}},
    }
