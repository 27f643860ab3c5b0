"""Limits of values, written down as JSON Schema and read back as a type that msgspec checks.

Knows the few keywords that fields of commands need. What it does not know is not checked here: the server does.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

_BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "pattern": "pattern",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "minProperties": "min_length",
    "maxProperties": "max_length",
}
_SIMPLE = {"integer": int, "number": float, "string": str}
_INNER = ("items", "propertyNames", "additionalProperties")


def essence(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be checked of a schema; empty if that is nothing, or more than can be checked here."""
    if "anyOf" in schema:
        present = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return essence(present[0]) if len(present) == 1 else {}
    known = (*_SIMPLE, "array", "object")
    if schema.get("type") not in known or "enum" in schema or "prefixItems" in schema:
        return {}
    kept = {name: schema[name] for name in ("type", *_BOUNDS) if name in schema}
    for name in _INNER:
        inner = schema.get(name)
        if isinstance(inner, Mapping):
            # the keys of an object are texts even where the schema does not say so
            inner = {"type": "string", **inner} if name == "propertyNames" else inner
            if found := essence(inner):
                kept[name] = found
    return kept if len(kept) > 1 else {}


def check(values: Mapping[str, Any], limits: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises msgspec.ValidationError that names the value and the limit which it breaks."""
    checked = [(name, _type(schema)) for name, schema in limits.items() if schema and name in values]
    if checked:
        msgspec.convert({name: values[name] for name, _ in checked}, msgspec.defstruct("Values", checked))


def _type(schema: Mapping[str, Any]) -> Any:
    made: Any = _SIMPLE.get(schema.get("type", ""), Any)
    if schema.get("type") == "array":
        made = list[_type(schema.get("items", {}))]  # type: ignore[misc]  # made at run time, for msgspec alone
    elif schema.get("type") == "object":
        key, value = _type(schema.get("propertyNames", {})), _type(schema.get("additionalProperties", {}))
        made = dict[key, value]  # type: ignore[valid-type]  # as above
    bounds = {_BOUNDS[name]: bound for name, bound in schema.items() if name in _BOUNDS}
    return Annotated[made, Meta(**bounds)] if bounds else made
