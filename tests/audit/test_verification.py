"""The offline verifier: a sound export is sound, and whatever is done to one is found."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.audit.logs import (
    FIRST,
    ORIGIN,
    SECOND,
    THIEF,
    announcement,
    checkpoint,
    event,
    events,
    export,
    leaves,
)
from vmorch.audit.export import BadExport, Line, data_of, event_hash, event_line, read_line, write_line
from vmorch.audit.notes import Checkpoint, VerifierKey
from vmorch.audit.verification import Verdict, verify
from vmorch.core.records import Recorded

LOG = events(23)
SEALS = [(5, FIRST), (6, FIRST), (20, FIRST), (23, FIRST)]
EXPORT = export(LOG, SEALS)


def judged(
    lines: list[bytes], *keys: VerifierKey, witnessed: tuple[Checkpoint, ...] = (), part: bool = False
) -> Verdict:
    return verify(lines, keys or (FIRST.key,), witnessed, part=part)


def found(verdict: Verdict) -> list[tuple[str, int, int]]:
    return [(each.what, each.first, each.last) for each in verdict.findings]


def test_an_export_of_the_whole_log_is_sound() -> None:
    verdict = judged(EXPORT)
    assert verdict.sound
    assert (verdict.after, verdict.until, verdict.size, verdict.events, verdict.checkpoints) == (0, 23, 23, 23, 4)
    assert verdict.root == checkpoint(LOG, 23).root.hex()
    assert verdict.signed_by == FIRST.key.text()


@settings(deadline=None)
@given(st.data())
def test_any_part_of_the_log_is_proven_on_its_own(data: st.DataObject) -> None:
    after = data.draw(st.integers(0, 23))
    until = data.draw(st.integers(after, 23))
    verdict = judged(export(LOG, SEALS, after, until), part=True)
    assert verdict.sound, verdict.findings
    assert verdict.events == until - after


def test_a_part_is_not_taken_for_the_whole() -> None:
    assert found(judged(export(LOG, SEALS, 7))) == [("partial", 1, 7)]


def test_another_key_does_not_count() -> None:
    assert found(judged(EXPORT, THIEF.key)) == [("unsigned", size, size) for size, _ in SEALS]


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_anywhere_in_an_export_is_found_or_means_nothing(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(EXPORT) - 1))
    line = EXPORT[number]
    place = data.draw(st.integers(0, len(line) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each != line[place]))
    changed = line[:place] + bytes([byte]) + line[place + 1 :]
    try:
        verdict = judged([*EXPORT[:number], changed, *EXPORT[number + 1 :]])
    except BadExport:
        return
    if verdict.sound:
        assert meaning(changed) == meaning(line), changed


def meaning(text: bytes) -> object:
    """What a verifier vouches for of a line."""
    line = read_line(text)
    if line.type.startswith("vmorch.audit."):
        told = msgspec.json.decode(line.data)
        # how long the log was is the server's word; and a checkpoint that nobody signed any more means what the next
        # one says, which somebody did sign
        return line.type, {
            name: value.partition("\n\n")[0] if name == "note" else value
            for name, value in told.items()
            if name != "head"
        }
    return event_hash(line), data_of(line)


@settings(deadline=None)
@given(st.data())
def test_a_line_left_out_doubled_or_swapped_is_found(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(EXPORT) - 1))
    other = data.draw(st.integers(0, len(EXPORT) - 1).filter(lambda each: each != number))
    swapped = list(EXPORT)
    swapped[number], swapped[other] = swapped[other], swapped[number]
    for lines in (
        [*EXPORT[:number], *EXPORT[number + 1 :]],
        [*EXPORT[: number + 1], *EXPORT[number:]],
        swapped,
    ):
        try:
            verdict = judged(lines)
        except BadExport:
            continue
        # a checkpoint between two others is of no consequence for what the last one proves
        harmless = read_line(EXPORT[number]).type == "vmorch.audit.checkpoint"
        assert not verdict.sound or harmless


def test_a_changed_event_is_named() -> None:
    forged = [*LOG[:10], replace(LOG[10], data=b'{"name":"forged"}'), *LOG[11:]]
    lines = [forged_line(line, forged) for line in EXPORT]
    verdict = judged(lines)
    assert found(verdict) == [("changed", 11, 11)]
    assert verdict.findings[0].detail == "event 11 (vm.renamed of vm/2) is not what was sealed"


def forged_line(line: bytes, log: list[Recorded]) -> bytes:
    if read_line(line).id != "11":
        return line
    return write_line(event_line(ORIGIN, log[10], leaves(LOG)[10]))


def test_a_changed_event_with_a_hash_to_match_is_found_between_two_checkpoints() -> None:
    forged = [*LOG[:10], replace(LOG[10], data=b'{"name":"forged"}'), *LOG[11:]]
    lines = list(EXPORT)
    at = next(number for number, line in enumerate(lines) if read_line(line).id == "11")
    lines[at] = write_line(event_line(ORIGIN, forged[10], leaves(forged)[10]))
    assert found(judged(lines)) == [("not-sealed", 7, 20)]


def test_a_log_sealed_anew_by_a_thief_is_not_signed() -> None:
    forged = [*LOG[:10], replace(LOG[10], data=b'{"name":"forged"}'), *LOG[11:]]
    verdict = judged(export(forged, [(5, FIRST), (6, FIRST), (20, THIEF), (23, THIEF)]))
    assert found(verdict) == [("unsigned", 20, 20), ("unsigned", 23, 23)]


def test_a_fork_by_the_keys_holder_is_found_by_a_witness() -> None:
    forged = [*LOG[:10], replace(LOG[10], data=b'{"name":"forged"}'), *LOG[11:]]
    lines = export(forged, SEALS)
    assert judged(lines).sound
    assert judged(lines, witnessed=(checkpoint(LOG, 6),)).sound
    assert found(judged(lines, witnessed=(checkpoint(LOG, 6), checkpoint(LOG, 20)))) == [("forked", 7, 20)]


def test_a_shorter_log_is_found_by_a_witness() -> None:
    lines = export(LOG[:20], SEALS[:3])
    assert judged(lines).sound
    assert found(judged(lines, witnessed=(checkpoint(LOG, 23),))) == [("shorter", 21, 23)]
    part = judged(lines, witnessed=(checkpoint(LOG, 23),), part=True)
    assert part.sound
    assert part.beyond == 1


def test_another_log_is_not_the_one_that_was_witnessed() -> None:
    elsewhere = Checkpoint("vmorch/test/2", 99, bytes(32))
    assert ("forked", 1, 23) in found(judged(EXPORT, witnessed=(elsewhere,)))


def test_an_export_that_breaks_off_is_refused() -> None:
    with pytest.raises(BadExport, match="before its end"):
        judged(EXPORT[:-1])


TURNED = [*LOG[:9], announcement(10, SECOND), *LOG[10:]]


def test_a_key_vouches_for_the_next_one() -> None:
    lines = export(TURNED, [(5, FIRST), (10, FIRST), (20, SECOND), (23, SECOND)])
    verdict = judged(lines)
    assert verdict.sound
    assert verdict.signed_by == SECOND.key.text()
    assert judged(lines, SECOND.key).sound, "who trusts the newest key only is satisfied as well"


def test_a_retired_key_counts_no_more() -> None:
    lines = export(TURNED, [(5, FIRST), (10, FIRST), (20, FIRST), (23, FIRST)])
    assert found(judged(lines)) == [("unsigned", 20, 20), ("unsigned", 23, 23)]


def test_a_key_that_is_announced_but_not_vouched_for_does_not_count() -> None:
    lines = export(TURNED, [(5, FIRST), (10, SECOND), (23, SECOND)])
    assert found(judged(lines)) == [("unsigned", 10, 10), ("unsigned", 23, 23)]


def test_an_announcement_that_was_forged_gives_nobody_a_key() -> None:
    lines = export(TURNED, [(5, FIRST), (10, FIRST), (20, SECOND), (23, THIEF)])
    at = next(number for number, line in enumerate(lines) if read_line(line).id == "10")
    lines[at] = write_line(event_line(ORIGIN, announcement(10, THIEF), leaves(TURNED)[9]))
    assert ("changed", 10, 10) in found(judged(lines))
    assert ("unsigned", 23, 23) in found(judged(lines))


def test_a_key_that_replaces_a_lost_one_must_be_given_to_the_verifier() -> None:
    log = [*LOG[:9], announcement(10, SECOND, orphaned=True), *LOG[10:]]
    lines = export(log, [(5, FIRST), (10, SECOND), (23, SECOND)])
    assert found(judged(lines)) == [("unsigned", 10, 10), ("unsigned", 23, 23)]
    assert judged(lines, FIRST.key, SECOND.key).sound
    assert not judged(export(log, [(5, FIRST), (10, SECOND), (23, FIRST)]), FIRST.key, SECOND.key).sound


@given(st.binary(max_size=40))
def test_an_event_comes_back_byte_for_byte_or_not_at_all(data: bytes) -> None:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert_kept(data)


@pytest.mark.parametrize(
    "data", [b'{"a": 1.0e3}', b' {"a":1}', b'{"a":\n1}\r\n', b'{"a":"\\u00e9"}', b"1", b'"\xc3\xa9"']
)
def test_odd_json_is_kept_as_it_was_written(data: bytes) -> None:
    assert_kept(data)


def assert_kept(data: bytes) -> None:
    record = event(1, data=data)
    text = write_line(event_line(ORIGIN, record, None))
    assert text.count(b"\n") == 1
    assert data_of(read_line(text)) == data
    assert event_hash(read_line(text)) == leaves([record])[0]


def test_a_line_is_a_cloud_event() -> None:
    told = msgspec.json.decode(write_line(event_line(ORIGIN, event(3), None)))
    assert told["specversion"] == "1.0"
    assert told["id"] == "3"
    assert told["source"] == f"/{ORIGIN}"
    assert told["type"] == "vm.renamed"
    assert told["time"] == "2026-11-20T14:00:00.003711Z"
    assert all(name.isalnum() and name.islower() for name in told if name != "data_base64")
    assert isinstance(read_line(msgspec.json.encode(told)), Line)
