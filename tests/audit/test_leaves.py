"""What is hashed of an event: all of it, and no two events alike."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vmorch.audit.leaves import microseconds, sealed_hash
from vmorch.core.ids import Position, Stream
from vmorch.core.records import Recorded

numbers = st.integers(0, 2**31 - 1)
documents = st.binary(max_size=30)
records = st.builds(
    lambda position, stream, version, kind, schema, data, meta, seconds: Recorded(
        position=Position(position),
        stream=Stream(stream),
        version=version,
        kind=kind,
        schema=schema,
        data=data,
        meta=meta,
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=seconds),
    ),
    numbers,
    st.text(max_size=8),
    numbers,
    st.text(max_size=8),
    numbers,
    documents,
    documents,
    numbers,
)

SAMPLE = Recorded(
    position=Position(42),
    stream=Stream("vm/web"),
    version=7,
    kind="vm.renamed",
    schema=1,
    data=b'{"name":"web"}',
    meta=b'{"actor":"oncall"}',
    recorded_at=datetime(2026, 11, 20, 14, 0, 0, 123456, tzinfo=UTC),
)


def test_the_framing_is_the_documented_one() -> None:
    framed = (
        b"vmorch.event.1"
        + (42).to_bytes(8, "big")
        + (7).to_bytes(8, "big")
        + (1).to_bytes(4, "big")
        + microseconds(SAMPLE.recorded_at).to_bytes(8, "big")
        + (6).to_bytes(4, "big")
        + b"vm/web"
        + (10).to_bytes(4, "big")
        + b"vm.renamed"
        + (18).to_bytes(4, "big")
        + b'{"actor":"oncall"}'
        + sha256(b'{"name":"web"}').digest()
    )
    assert sealed_hash(SAMPLE) == sha256(b"\x00" + framed).digest()


def test_the_framing_never_changes() -> None:
    assert sealed_hash(SAMPLE).hex() == "82377481bd669838a5764f101c15695613687116135f467a6b940fe0cea7066a"


@given(records, records)
def test_two_events_that_differ_in_anything_have_different_hashes(one: Recorded, other: Recorded) -> None:
    assert (sealed_hash(one) == sealed_hash(other)) == (one == other)


@given(records, st.data())
def test_changing_any_one_column_changes_the_hash(record: Recorded, data: st.DataObject) -> None:
    other = data.draw(records)
    for column in record.__struct_fields__:
        changed = replace(record, **{column: getattr(other, column)})
        assert (sealed_hash(changed) == sealed_hash(record)) == (changed == record)


@given(records)
def test_microseconds_are_counted_exactly(record: Recorded) -> None:
    counted = microseconds(record.recorded_at)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=counted) == record.recorded_at
