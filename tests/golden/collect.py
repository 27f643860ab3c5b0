"""Keeps events that were really recorded: logs of the tests' simulated clusters and histories, cut to what is needed.

    python -m pytest -p tests.golden.collect tests/engine tests/core

Writes to `events/` as few logs as have every kind and schema that no file there has yet. A file that is there is never
changed: it is what an earlier version wrote.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmorch.core.fleet  # noqa: F401  registers every event
from tests.core import world
from vmorch.core.codec import Fact
from vmorch.core.ids import Stream
from vmorch.core.messages import EVENTS, Event
from vmorch.core.records import Recorded
from vmorch.log.memory import MemoryLog

EVENTS_PLACE = Path(__file__).parent / "events"

Shape = tuple[str, int]

_made: list[MemoryLog] = []
_logs: dict[str, list[Recorded]] = {}


def registered() -> set[Shape]:
    """Every kind of event of vmorch in its newest schema."""
    return {(kind, made.schema) for kind, made in EVENTS.items() if made.__module__.startswith("vmorch.")}


def kept() -> set[Shape]:
    """Every kind and schema in the files."""
    files = [json.loads(path.read_text()) for path in EVENTS_PLACE.glob("*.json")]
    return {(each["kind"], each["schema"]) for file in files for each in file}


def as_json(record: Recorded) -> dict[str, Any]:
    """A record as a file holds it; data and meta as the text that was stored."""
    return {
        "position": record.position,
        "stream": record.stream,
        "version": record.version,
        "kind": record.kind,
        "schema": record.schema,
        "data": record.data.decode(),
        "meta": record.meta.decode(),
        "recorded_at": record.recorded_at.isoformat(),
    }


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = MemoryLog.__init__

    def noting(self: MemoryLog, *arguments: Any, **named: Any) -> None:
        before(self, *arguments, **named)
        _made.append(self)

    histories: dict[int, list[Recorded]] = {}
    writing = [0]
    record, understand = world.History.record, world.decode

    def recording(self: world.History, at: Stream, *events: Event) -> world.History:
        writing[0] = id(self)
        return record(self, at, *events)

    def understanding(found: Recorded) -> Fact:
        histories.setdefault(writing[0], []).append(found)
        return understand(found)

    monkeypatch.setattr(MemoryLog, "__init__", noting)
    monkeypatch.setattr(world.History, "record", recording)
    monkeypatch.setattr(world, "decode", understanding)
    _made.clear()
    yield
    for number, log in enumerate([*(each._events for each in _made), *histories.values()]):
        # an id that was given to a second history, or a fleet that was tampered with, is no log
        if [each.position for each in log] == list(range(1, len(log) + 1)):
            _logs[f"{request.node.name}-{number}"] = list(log)


def pytest_sessionfinish() -> None:
    missing = registered() - kept()
    while missing:
        name, log = max(_logs.items(), key=lambda each: (len(missing & _shapes(each[1])), -len(each[1])))
        found = missing & _shapes(log)
        if not found:
            break
        # what comes after the last that is needed would only make the file longer
        shapes = [(each.kind, each.schema) for each in log]
        cut = 1 + max(shapes.index(each) for each in found)
        lines = ",\n".join(json.dumps(as_json(each), ensure_ascii=False) for each in log[:cut])
        EVENTS_PLACE.mkdir(exist_ok=True)
        title = re.sub(r"[^a-z0-9]+", "-", name.removeprefix("test_").lower()).strip("-")
        (EVENTS_PLACE / f"{title}.json").write_text(f"[\n{lines}\n]\n")
        missing -= found
    for kind, schema in sorted(missing):
        print(f"\nno log has {kind} {schema}")


def _shapes(log: list[Recorded]) -> set[Shape]:
    return {(each.kind, each.schema) for each in log}
