"""Every event that was ever written can still be read, and comes to the same state as when it was written."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.golden.collect import EVENTS_PLACE, kept, registered
from vmorch.core.codec import decode, encode
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Position, Stream
from vmorch.core.messages import EVENTS
from vmorch.core.records import Recorded
from vmorch.core.states import digest, frame_of, held, pack_frame, read_frame, read_row, restore, row_of
from vmorch.views.rows import Rows

STATES = EVENTS_PLACE.parent / "states"
FILES = sorted(EVENTS_PLACE.glob("*.json"))
COLLECT = "python -m pytest -p tests.golden.collect tests/engine tests/core"


def records(path: Path) -> list[Recorded]:
    return [
        Recorded(
            position=Position(each["position"]),
            stream=Stream(each["stream"]),
            version=each["version"],
            kind=each["kind"],
            schema=each["schema"],
            data=each["data"].encode(),
            meta=each["meta"].encode(),
            recorded_at=datetime.fromisoformat(each["recorded_at"]),
        )
        for each in json.loads(path.read_text())
    ]


def state(log: Iterable[Recorded]) -> dict[str, Any]:
    """Every row of the read models after this log."""
    rows = Rows()
    found: dict[str, Any] = {}
    for record in log:
        rows.apply(decode(record))
        for (model, id), row in rows.take().items():
            if row is None:
                found.pop(f"{model}/{id}", None)
            else:
                found[f"{model}/{id}"] = json.loads(row["doc"])
    return dict(sorted(found.items()))


def as_text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def test_every_kind_in_every_schema_is_in_the_corpus() -> None:
    missing = registered() - kept()
    assert not missing, f"no recorded event of {sorted(missing)}; have a test record it and run: {COLLECT}"


def test_what_is_in_the_corpus_is_still_known() -> None:
    forgotten = {kind for kind, _ in kept()} - set(EVENTS)
    assert not forgotten, "kinds are for ever: whoever drops one cannot read his log any more"
    for kind, schema in kept():
        assert schema <= EVENTS[kind].schema


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_log_comes_to_the_state_that_it_came_to(path: Path) -> None:
    golden = STATES / path.name
    found = as_text(state(records(path)))
    assert golden.exists(), f"write what it comes to: python -m tests.golden.states {path.name}"
    assert found == golden.read_text(), f"if that is meant to be shown: python -m tests.golden.states {path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_state_of_an_old_log_outlives_a_checkpoint_and_can_be_compared(path: Path) -> None:
    fleet = Fleet()
    for record in records(path):
        fleet.apply(decode(record))
    rows = [read_row(row_of(each)) for each in held(fleet)]
    again = restore(fleet.position, read_frame(pack_frame(frame_of(fleet, {}))), rows)
    assert digest(again) == digest(fleet)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_event_that_is_written_again_says_all_that_it_said(path: Path) -> None:
    for record in records(path):
        fact = decode(record)
        again = encode(fact.event, fact.meta)
        if record.schema == EVENTS[record.kind].schema:
            assert again.schema == record.schema
            said, says = msgspec.json.decode(record.data), msgspec.json.decode(again.data)
            assert holds(says, said), (record.position, said, says)


def holds(now: Any, then: Any) -> bool:
    """Whether a document says all that another one said; fields may have come since, which then have their defaults."""
    match then:
        case dict():
            return isinstance(now, dict) and all(key in now and holds(now[key], then[key]) for key in then)
        case list():
            return isinstance(now, list) and len(now) == len(then) and all(map(holds, now, then))
        case _:
            return bool(now == then)
