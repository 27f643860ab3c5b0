"""Server-sent events, however the bytes are cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cli.sse import EventParser, ServerEvent

STREAM = (
    b'\xef\xbb\xbf: keepalive\n\nevent: operation\ndata: {"a":1}\n\n'
    b"id: 48231\r\nevent:event\r\ndata: one\r\ndata:  two\r\n\r\ndata: last\r\rdata: never closed\n"
)
EVENTS = [
    ServerEvent("operation", '{"a":1}', ""),
    ServerEvent("event", "one\n two", "48231"),
    ServerEvent("message", "last", "48231"),
]


def test_a_stream_gives_its_events() -> None:
    assert EventParser().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    parser = EventParser()
    places = [0, *sorted(cuts), len(STREAM)]
    found = [event for a, b in pairwise(places) for event in parser.feed(STREAM[a:b])]
    assert found == EVENTS


def test_a_letter_that_is_cut_in_two_arrives_whole() -> None:
    parser = EventParser()
    text = "data: grün\n\n".encode()
    found = [event for byte in text for event in parser.feed(bytes([byte]))]
    assert found == [ServerEvent("message", "grün", "")]


def test_comments_and_unknown_fields_are_nothing() -> None:
    assert EventParser().feed(b": hello\nretry: 10\nwhat: ever\n\n") == []
