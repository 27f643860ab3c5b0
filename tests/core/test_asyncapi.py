"""The description of the published log holds for what is really published."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from vmorch.core.cloudevents import cloudevent, rendered
from vmorch.core.codec import encode
from vmorch.core.ids import Position, Stream, stream
from vmorch.core.messages import EVENTS, Event, Meta
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import Recorded
from vmorch.wire import subjects
from vmorch.wire.asyncapi import document

DOCUMENT = document()


def payload(kind: str) -> dict[str, Any]:
    return {"$ref": f"#/components/messages/{kind}/payload", "components": DOCUMENT["components"]}


def outside(event: Event) -> Any:
    new = encode(event, Meta(actor="tester", occurred_at=datetime(2026, 1, 1, tzinfo=UTC), causation=Position(3)))
    record = Recorded(
        position=Position(7),
        stream=stream("vm", "v-1"),
        version=1,
        kind=new.kind,
        schema=new.schema,
        data=new.data,
        meta=new.meta,
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert cloudevent(record, "c", "i").position == "7"
    return json.loads(rendered(record, "c", "i", 1 << 20))


def test_every_event_is_described() -> None:
    kinds = {kind for kind, made in EVENTS.items() if made.__module__.startswith("vmorch.")}
    assert set(DOCUMENT["channels"]["log"]["messages"]) == set(DOCUMENT["components"]["messages"]) == kinds


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for each in value.values() for found in references(each)]
        return [found for each in value for found in references(each)] if isinstance(value, list) else []

    for reference in references(DOCUMENT):
        at: Any = DOCUMENT
        for word in reference.removeprefix("#/").split("/"):
            at = at[word]


def test_what_goes_out_is_what_is_described() -> None:
    jsonschema.Draft202012Validator(payload("vm.renamed")).validate(outside(VmRenamed(name="web")))


@pytest.mark.parametrize("field", ["specversion", "id", "source", "type", "position", "actor"])
def test_what_lacks_an_attribute_is_not(field: str) -> None:
    event = outside(VmRenamed(name="web"))
    del event[field]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(payload("vm.renamed")).validate(event)


def test_the_address_is_the_subject() -> None:
    address = DOCUMENT["channels"]["log"]["address"]
    filled = address.format(cluster="c", aggregate="vm", id="v-1", kind="vm.renamed")
    assert filled == subjects.published("c", stream("vm", "v-1"), "vm.renamed") == "vmorch.c.log.vm.v-1.vm.renamed"


@pytest.mark.parametrize("id", ["a.b", "*", ">", "a b", "a/b", "ü", "\n"])
def test_no_id_adds_words_to_a_subject(id: str) -> None:
    subject = subjects.published("c", Stream(f"vm/{id}"), "vm.renamed")
    assert len(subject.split(".")) == 7
    assert subject.isprintable()
    assert not set(subject) & set(" *>")
