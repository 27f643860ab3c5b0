"""How an event goes out: as a CloudEvent that says everything the log says, but for what only a guest shall read."""

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as some

from vmorch.core.cloudevents import cloudevent, rendered
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded

META = {
    "actor": "oncall",
    "reason": "cleaning up",
    "request": "r-1",
    "operation": "o-1",
    "causation": 6,
    "correlation": "c-1",
    "occurred_at": "2026-01-01T11:59:59Z",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "fingerprint": "secret of the request",
}


def record(data: bytes = b'{"name":"web"}', meta: Any = META, kind: str = "vm.renamed") -> Recorded:
    return Recorded(
        position=Position(7),
        stream=Stream("vm/v-1"),
        version=3,
        kind=kind,
        schema=2,
        data=data,
        meta=json.dumps(meta).encode(),
        recorded_at=datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))),
    )


def sent(what: Recorded, limit: int = 1 << 20) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rendered(what, "prod", "inc", limit))
    return found


def test_an_event_says_what_it_is_and_who_did_it() -> None:
    assert sent(record()) == {
        "specversion": "1.0",
        "id": "inc/7",
        "source": "/vmorch/prod",
        "type": "vmorch.vm.renamed",
        "subject": "vm/v-1",
        "time": "2026-01-01T12:00:00Z",
        "dataschema": "urn:vmorch:event:vm.renamed:2",
        "datacontenttype": "application/json",
        "position": "7",
        "streamversion": "3",
        "actor": "oncall",
        "reason": "cleaning up",
        "request": "r-1",
        "operation": "o-1",
        "causation": "6",
        "correlation": "c-1",
        "occurredat": "2026-01-01T11:59:59Z",
        "traceparent": META["traceparent"],
        "data": {"name": "web"},
    }


def test_what_nobody_said_is_left_out() -> None:
    event = sent(record(meta={"actor": "policy", "occurred_at": "2026-01-01T11:59:59Z"}))
    assert {"reason", "request", "operation", "causation", "correlation", "traceparent"}.isdisjoint(event)


def test_names_of_attributes_are_those_that_the_standard_allows() -> None:
    for name in sent(record()):
        assert name.isalnum()
        assert name == name.lower()
        assert len(name) <= 20


def test_data_goes_out_byte_for_byte() -> None:
    data = b'{"b":1.0,"a":1e3}'
    assert data in rendered(record(data), "prod", "inc", 1 << 20)


def test_data_that_is_too_large_is_named_instead() -> None:
    event = sent(record(b'{"name":"' + b"x" * 2000 + b'"}'), limit=1000)
    assert event["dataref"] == "/v1/events/7"
    assert "data" not in event


def test_meta_of_an_unknown_shape_keeps_nothing_in() -> None:
    assert sent(record(meta={"actor": ["a", "list"]}))["position"] == "7"


@settings(deadline=None)
@given(some.dictionaries(some.text(), some.recursive(some.none() | some.text(), some.lists), max_size=5))
def test_whatever_lies_in_the_log_comes_out_as_it_was(data: dict[str, Any]) -> None:
    assert sent(record(msgspec.json.encode(data)))["data"] == data


def test_equal_records_give_equal_bytes() -> None:
    assert cloudevent(record(), "a", "b") == cloudevent(record(), "a", "b")
    assert rendered(record(), "a", "b", 1 << 20) == rendered(record(), "a", "b", 1 << 20)
