"""The published log described as an AsyncAPI 3.0 document, made from the registry of events.

Must not know what an event means, only its shape.
"""

import inspect
from typing import Any

import msgspec

import vmorch.core.fleet  # noqa: F401  registers every event
from vmorch.core.cloudevents import MEDIA_TYPE, CloudEvent, schema_uri, type_of
from vmorch.core.ids import Position, Stream
from vmorch.core.messages import EVENTS, Event
from vmorch.wire import subjects

VERSION = "1.0.0"
"""Of the published log's form: subjects, headers and attributes. Events have schema numbers of their own."""

_REFERENCE = "#/components/schemas/{name}"
_ATTRIBUTES = {
    "id": "INCARNATION/POSITION: unique together with the source.",
    "source": "/vmorch/CLUSTER",
    "type": "`vmorch.` and the event's kind.",
    "subject": "The stream of the log that the event belongs to, such as vm/ID.",
    "time": "When the log recorded the event.",
    "dataschema": "urn:vmorch:event:KIND:SCHEMA; data has the shape that it was stored in.",
    "position": "The place of the event in the whole log, in decimal; also the message's sequence and Nats-Msg-Id.",
    "streamversion": "The place of the event in its stream, in decimal.",
    "actor": "Who did it.",
    "reason": "Why, in the actor's words.",
    "request": "The request that asked for it.",
    "operation": "The operation that it is a part of.",
    "causation": "The position of the event that it follows from, in decimal.",
    "correlation": "The whole undertaking that it belongs to.",
    "occurredat": "When it happened, by the clock of who recorded it.",
    "traceparent": "W3C trace context of the request.",
    "dataref": "Where the event is found in the API, in place of data that is too large for a message.",
}


def document() -> dict[str, Any]:
    """The whole description. Equal registries give equal documents."""
    kinds = sorted(kind for kind, made in EVENTS.items() if made.__module__.startswith("vmorch."))
    _, components = msgspec.json.schema_components([EVENTS[kind] for kind in kinds], ref_template=_REFERENCE)
    address = subjects.published("{cluster}", Stream("{aggregate}/{id}"), "{kind}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "vmorch: the published log",
            "version": VERSION,
            "description": (
                "Every committed event of a cluster, in order and once per position, as a CloudEvent 1.0 in a "
                "JetStream stream. The sequence of a message in the stream is the event's position in the log."
            ),
        },
        "defaultContentType": MEDIA_TYPE,
        "channels": {
            "log": {
                "address": _unquoted(address),
                "description": "Held by the stream `vmorch-{cluster}`. A kind keeps its own dots.",
                "parameters": {
                    "cluster": {"description": "The cluster's name."},
                    "aggregate": {"description": "What the event is about: vm, host, image, drain and so on."},
                    "id": {"description": "Its id, percent-encoded where a subject could not hold it."},
                    "kind": {"description": "The event's kind.", "enum": kinds},
                },
                "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds},
            }
        },
        "operations": {
            "publish": {
                "action": "send",
                "channel": {"$ref": "#/channels/log"},
                "summary": "The leading server publishes each committed event.",
            }
        },
        "components": {
            "messages": {kind: _message(EVENTS[kind]) for kind in kinds},
            "schemas": {
                "cloudevent": _cloudevent(),
                "headers": _headers(),
                **dict(sorted(components.items())),
            },
        },
    }


def _message(made: type[Event]) -> dict[str, Any]:
    promise = " ".join((inspect.getdoc(made) or "").split("\n\n")[0].split())
    return {
        "name": type_of(made.kind),
        "summary": promise,
        "contentType": MEDIA_TYPE,
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/cloudevent"},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": type_of(made.kind)},
                        "dataschema": {"const": schema_uri(made.kind, made.schema)},
                        "data": _data(made),
                    },
                },
            ]
        },
    }


def _data(made: type[Event]) -> dict[str, Any]:
    (shape,), _ = msgspec.json.schema_components([made], ref_template=_REFERENCE)
    return dict(shape)


def _cloudevent() -> dict[str, Any]:
    (_, components) = msgspec.json.schema_components([CloudEvent], ref_template=_REFERENCE)
    shape = dict(components["CloudEvent"])
    properties = {
        name: {key: value for key, value in found.items() if key != "default"}
        for name, found in shape["properties"].items()
    }
    for name, said in _ATTRIBUTES.items():
        properties[name]["description"] = said
    properties["specversion"]["const"] = "1.0"
    properties["datacontenttype"]["const"] = "application/json"
    description = shape.get("description", "")
    return {"type": "object", "description": description, "properties": properties, "required": shape["required"]}


def _headers() -> dict[str, Any]:
    position = Position(1)
    return {
        "type": "object",
        "properties": {
            "Nats-Msg-Id": {"type": "string", "description": "The event's position.", "examples": [str(position)]},
            "Nats-Expected-Last-Sequence": {"type": "string", "description": "The position before it."},
            "Nats-Expected-Last-Msg-Id": {"type": "string", "description": "The same, if a message lies there."},
        },
        "required": ["Nats-Msg-Id", "Nats-Expected-Last-Sequence"],
    }


def _unquoted(address: str) -> str:
    # the id is encoded in a real subject, and here it is the name of a parameter
    return address.replace("%7Bid%7D", "{id}")
