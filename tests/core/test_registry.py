"""The registry: kinds are for ever, so any change of them shows in review."""

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

import vmorch.core.fleet  # noqa: F401  registers every message
from vmorch.core import spec
from vmorch.core.codec import Unreadable, decode, decode_event, pack, unpack_event
from vmorch.core.ids import Position, Stream
from vmorch.core.messages import COMMANDS, EVENTS, HOST_COMMANDS, Event, message
from vmorch.core.operations.rename import VmRenamed
from vmorch.core.records import Recorded

GOLDEN = Path(__file__).parents[1] / "golden" / "registry.txt"


def listing() -> str:
    lines = []
    for table in (EVENTS, COMMANDS, HOST_COMMANDS):
        for kind in sorted(table):
            made = table[kind]  # type: ignore[index]
            if made.__module__.startswith("vmorch."):
                fields = " ".join(field.name for field in msgspec.structs.fields(made))
                lines.append(f"{kind} {made.schema}: {fields}".rstrip())
    return "\n".join(lines) + "\n"


def test_kinds_schemas_and_fields_are_those_on_record() -> None:
    assert listing() == GOLDEN.read_text(), f"if the change is meant, write this to {GOLDEN}:\n{listing()}"


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(TypeError, match="already"):
        message("vm.renamed")(type("Other", (Event,), {}))


def test_a_newer_schema_needs_an_upcaster_from_each_older_one() -> None:
    with pytest.raises(TypeError, match="needs an upcaster"):
        message("test.lifted", schema=3, upcasters={1: dict})(type("Lifted", (Event,), {}))


def test_old_shapes_are_lifted_at_the_door() -> None:
    class Painted(Event, frozen=True, kw_only=True):
        colour: str
        gloss: int

    message(
        "test.painted",
        schema=3,
        upcasters={1: lambda old: {"colour": old["color"]}, 2: lambda old: {**old, "gloss": 0}},
    )(Painted)
    try:
        assert decode_event("test.painted", 1, b'{"color":"red"}') == Painted(colour="red", gloss=0)
        assert decode_event("test.painted", 3, b'{"colour":"red","gloss":2}') == Painted(colour="red", gloss=2)
    finally:
        del EVENTS["test.painted"]


@pytest.mark.parametrize(
    ("kind", "schema", "data", "code"),
    [
        ("vm.from-the-future", 1, b"{}", "unknown-kind"),
        ("vm.renamed", 2, b'{"name":"a"}', "future-schema"),
        ("vm.renamed", 1, b'{"nam":"a"}', "bad-shape"),
        ("vm.renamed", 1, b"\xff", "bad-shape"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(kind: str, schema: int, data: bytes, code: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode_event(kind, schema, data)
    assert caught.value.code == code


@pytest.mark.parametrize("data", [b"{}", b"[]", b"null", b'"x"', b"1"])
def test_what_an_upcaster_cannot_lift_is_refused_like_any_other_bad_shape(data: bytes) -> None:
    class Weighed(Event, frozen=True, kw_only=True):
        grams: int

    message("test.weighed", schema=2, upcasters={1: lambda old: {"grams": old["kilos"] * 1000}})(Weighed)
    try:
        assert decode_event("test.weighed", 1, b'{"kilos":2}') == Weighed(grams=2000)
        for schema in (0, 1, -1):
            with pytest.raises(Unreadable) as caught:
                decode_event("test.weighed", schema, data)
            assert caught.value.code == "bad-shape"
    finally:
        del EVENTS["test.weighed"]


@pytest.mark.parametrize("meta", [b"{}", b"[]", b'{"actor":1}', b"\xff"])
def test_an_event_whose_meta_cannot_be_read_is_refused_with_its_reason(meta: bytes) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    record = Recorded(
        position=Position(1), stream=Stream("vm/1"), version=1, kind="vm.renamed", schema=1, data=b'{"name":"a"}',
        meta=meta, recorded_at=moment,
    )  # fmt: skip
    with pytest.raises(Unreadable, match=r"meta of vm\.renamed"):
        decode(record)


def test_a_packed_event_comes_back_as_it_was() -> None:
    assert unpack_event(pack(VmRenamed(name="web"))) == VmRenamed(name="web")


@pytest.mark.parametrize(
    "pattern", [value for name, value in vars(spec).items() if name.endswith("_PATTERN") and isinstance(value, str)]
)
def test_no_pattern_of_the_outside_lets_a_line_break_in(pattern: str) -> None:
    for text in ("a", "a/1", "10.0.0.1/8", "10.0.0.1", "52:54:00:aa:bb:cc", "/"):
        assert re.search(pattern, text + "\n") is None
