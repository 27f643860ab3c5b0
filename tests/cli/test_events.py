"""Events as one line each."""

from cli.events import subject_of, what
from cli.shapes import Event
from tests.cli.api import AT


def an_event(data: object, reason: str = "") -> Event:
    return Event(
        position=1, time=AT, kind="k", subject="vm/1", subject_name="web-1", reason=reason, data=data
    )


def test_an_event_says_its_own_fields_and_its_reason() -> None:
    said = what(
        an_event(
            {"name": "web-1", "labels": {"a": "b"}, "index": 0, "deep": {"x": {}}, "none": None}, "CHG-1"
        )
    )
    assert said == 'name web-1, labels a=b, index 0 "CHG-1"'
    assert subject_of(an_event({})) == "vm/web-1"


def test_ids_and_keys_are_cut_short_and_the_operation_left_out() -> None:
    id = "01a20ae1-3cd3-7047-be41-0eb89e09f249"
    assert (
        what(an_event({"operation": id, "host": id, "key": "A" * 56}))
        == "host ..9e09f249, key AAAAAAAAAAAA.."
    )


def test_a_long_event_is_cut() -> None:
    assert what(an_event({"text": "word " * 50})).endswith("...")
    assert len(what(an_event({"text": "word " * 50}))) == 60
