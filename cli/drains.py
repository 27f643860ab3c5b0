"""Watch a drain to its end, VM by VM, and tell how it ended. Must not cancel anything."""

from cli.client import decode
from cli.drain_shapes import Drain
from cli.drain_text import MARKS, STYLES, ended_line, sum_up, under_way
from cli.follow import follow_one
from cli.output import show_document, structured
from cli.problems import Problem
from cli.session import Session
from cli.shapes import Single
from cli.terminal import Terminal
from cli.transport import quote

DIFFERENCES = 10
SOME_FAILED = 9


def fetch(session: Session, id: str) -> tuple[bytes, Drain]:
    """A drain as it came and decoded."""
    answer = session.client.get(f"/v1/drains/{quote(id)}")
    return answer.body, decode(answer.body, Single[Drain]).item


def see_through(session: Session, id: str, *, timeout: float | None, title: str = "") -> Drain:
    """Stay until the drain is over and tell what became of it. Ends with 9 if something did not go as planned; raises
    Problem if it was ended before, Detached, Overdue."""
    drain = follow(session, id, timeout=timeout, title=title)
    if structured(session):
        show_document(session, session.client.get(f"/v1/drains/{quote(id)}").body)
    elif session.settings.output == "name":
        session.terminal.out(drain.id)
    elif not session.terminal.quiet:
        session.terminal.out(sum_up(drain))
    if drain.state == "incomplete":
        if not structured(session):
            session.terminal.note(f"hint: vmorch drain describe {drain.id}")
        raise SystemExit(SOME_FAILED)
    return drain


def check(drain: Drain) -> None:
    """Raises Problem `drain-ended` for a drain that somebody or something ended before it was through."""
    if drain.state in ("cancelled", "deadline", "aborted"):
        raise Problem(
            "drain-ended", sum_up(drain), hint=f"vmorch drain describe {drain.id}", facts={"drain": drain.id}
        )


def follow(session: Session, id: str, *, timeout: float | None, title: str) -> Drain:
    """Show each VM when it is known what became of it, until the drain is over."""
    return follow_one(
        session.client,
        session.terminal,
        id,
        f"/v1/drains/{quote(id)}/watch",
        {"drain": Drain},
        noun="drain",
        timeout=timeout,
        title=title,
        show=_Lines(session.terminal).show,
        over=lambda drain: drain.over,
    )


class _Lines:
    """Prints each VM once, when it is over; those under way on the moving line."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._told: dict[str, str] = {}
        self._wave = 0

    def show(self, drain: Drain) -> None:
        """What is new in this state of the drain."""
        terminal = self._terminal
        width = max((len(line.name) for line in drain.lines), default=0)
        for line in drain.lines:
            if line.over and self._told.get(line.vm) != line.state:
                self._told[line.vm] = line.state
                mark = terminal.paint_note(STYLES.get(line.state, ""), MARKS.get(line.state, line.state))
                terminal.note(f"  {mark}  {line.name:<{width}}  {ended_line(line)}")
        wave = min((line.wave for line in drain.lines if line.state == "moving" and line.wave), default=0)
        if wave > self._wave and drain.waves > 1:
            self._wave = wave
            number = sum(line.wave == wave for line in drain.lines)
            terminal.note(f"  wave {wave} of {drain.waves}: {number} VM{'s' if number > 1 else ''}")
        if not drain.over:
            terminal.show_live(under_way(drain.lines))
