"""On a terminal: questions, colour, the moving line, Ctrl-C."""

import json
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from tests.cli import api as make
from tests.cli.api import Api, Asked, Reply
from tests.cli.conftest import OnTerminal, Run

Start = Callable[..., OnTerminal]


@pytest.fixture
def lasting(api: Api) -> Iterator[threading.Event]:
    """An operation that goes on until the event is set."""
    over = threading.Event()

    def watch(asked: Asked) -> Reply:
        def chunks() -> Iterator[bytes]:
            yield from make.events(("operation", make.operation("running", "image:done disk:running")))
            over.wait(30)
            yield from make.events(("operation", make.operation("succeeded", "image:done disk:done")))

        return make.stream(chunks())

    api.on("POST /v1/vms/web-3/start", make.accepted("web-3"))
    api.on(f"GET /v1/operations/{make.OP}/watch", watch)
    api.on("GET /v1/vms/id-web-3", make.single("Vm", make.vm("web-3")))
    yield over
    over.set()


def test_ctrl_c_detaches_cancels_nothing_and_says_how_to_come_back(
    api: Api, terminal: Start, lasting: threading.Event
) -> None:
    process = terminal("vm", "start", "web-3")
    process.read_until("Ctrl-C detaches")
    process.read_until("..")
    process.interrupt()
    assert process.end() == 130
    assert f"Detached: op {make.OP} still runs. Nothing was cancelled." in process.seen
    assert f"vmorch op watch {make.OP}" in process.seen
    assert [each.path for each in api.changes()] == ["/v1/vms/web-3/start"]


def test_the_running_step_is_a_line_that_rewrites_itself(
    api: Api, terminal: Start, lasting: threading.Event
) -> None:
    process = terminal("vm", "start", "web-3")
    process.read_until("0.2s")
    lasting.set()
    assert process.end() == 0
    assert "\r\x1b[K" in process.seen
    assert "web-3 is running on hv-02 at 10.0.4.13" in process.seen


def test_ctrl_c_among_several_names_what_goes_on_and_what_was_never_begun(
    api: Api, terminal: Start, lasting: threading.Event
) -> None:
    process = terminal("vm", "start", "web-3", "web-4", "--max-parallel", "1")
    process.read_until("0 of 2 done")
    process.interrupt()
    assert process.end() == 130
    assert f"vmorch op watch {make.OP}" in process.seen
    assert "not asked for any more: web-4" in process.seen
    assert [each.path for each in api.changes()] == ["/v1/vms/web-3/start"]


def test_a_watched_list_is_redrawn_until_ctrl_c(api: Api, terminal: Start) -> None:
    states = ["off", "running"]

    def look(asked: Asked) -> Reply:
        return make.listing("Vm", [make.vm("web-1", state=states[min(len(api.asked) - 1, 2) // 2])])

    over = threading.Event()

    def tail(asked: Asked) -> Reply:
        def chunks() -> Iterator[bytes]:
            if asked.query["after"] == ["48204"] and len(api.asked) < 3:
                yield b"id: 48205\ndata: {}\n\n"
            over.wait(30)

        return make.stream(chunks())

    api.on("GET /v1/vms", look)
    api.on("GET /v1/events/tail", tail)
    process = terminal("vm", "list", "--watch")
    process.read_until("off")
    process.read_until("running")
    process.interrupt()
    assert process.end() == 130
    over.set()
    assert process.seen.count("\x1b[H\x1b[2J") == 2


def test_the_name_must_be_typed_to_delete(api: Api, terminal: Start) -> None:
    api.on("GET /v1/vms/web-1", make.single("Vm", make.vm("web-1")))
    api.on("POST /v1/vms/web-1/delete", make.accepted("web-1", operation=None))
    process = terminal("vm", "delete", "web-1")
    process.read_until("to go on: ")
    assert "delete web-1: running on hv-02; disks vda 40Gi" in process.seen
    process.type("web-1\n")
    assert process.end() == 0
    assert len(api.changes()) == 1


@pytest.mark.parametrize("typed", ["y\n", "web-2\n", "\n", "\x04"])
def test_anything_else_deletes_nothing(api: Api, terminal: Start, typed: str) -> None:
    api.on("GET /v1/vms/web-1", make.single("Vm", make.vm("web-1")))
    process = terminal("vm", "delete", "web-1")
    process.read_until("to go on: ")
    process.type(typed)
    assert process.end() == 6
    assert api.changes() == []


def test_who_says_where_a_vm_is_sees_what_was_seen_of_it(api: Api, terminal: Start) -> None:
    ends = {"source": {"host": "hv-01", "power": "unknown", "reason": "not seen"},
            "destination": {"host": "hv-02", "power": "paused", "reason": "migration"}}  # fmt: skip
    frozen = {"operation": "op", "why": "the source cannot be seen", "since": None, **ends}
    known = json.loads(msgspec.json.encode(make.vm("web-1")))
    api.on("GET /v1/vms/web-1", make.single("Vm", {**known, "frozen": frozen}))
    api.on("POST /v1/vms/web-1/resolve", make.accepted("web-1", operation=None))
    process = terminal("vm", "resolve", "web-1", "hv-02")
    process.read_until("to go on: ")
    for each in ("the source cannot be seen", "hv-01: unknown (not seen)", "hv-02: paused (migration)"):
        assert each in process.seen
    process.type("web-1\n")
    assert process.end() == 0
    assert len(api.changes()) == 1


def test_no_input_never_asks(api: Api, terminal: Start) -> None:
    process = terminal("vm", "delete", "web-1", "--no-input")
    assert process.end() == 6
    assert "--yes" in process.seen


def test_ctrl_c_at_a_question_does_nothing(api: Api, terminal: Start) -> None:
    process = terminal("host", "retire", "hv-01")
    process.read_until("to go on: ")
    process.interrupt()
    assert process.end() == 130
    assert api.changes() == []


def test_states_are_coloured_on_a_terminal_only(api: Api, terminal: Start, vmorch: Run) -> None:
    api.on("GET /v1/vms", make.listing("Vm", [make.vm("web-1")]))
    coloured = terminal("vm", "list")
    assert coloured.end() == 0
    assert "\x1b[32mrunning\x1b[0m" in coloured.seen
    for more in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = terminal("vm", "list", **more)
        assert plain.end() == 0
        assert "\x1b[" not in plain.seen
    assert "\x1b[" not in vmorch("vm", "list").stdout
    assert "\x1b[32m" in vmorch("vm", "list", "--color", "always").stdout
    assert "\x1b[32m" in vmorch("vm", "list", CLICOLOR_FORCE="1").stdout
