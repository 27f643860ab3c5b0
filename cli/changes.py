"""Ask for a change, and choose what it is asked of.

Must not decide whether a change is allowed: the API does, and its refusals are shown as they come. Must not import
what is needed only once the API was asked: that is done while the server works.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from cli.problems import Problem
from cli.session import Session


class Waiting(Struct, frozen=True, kw_only=True):
    """How long the operator stays."""

    detach: bool = False
    timeout: float | None = None


class Request(Struct, frozen=True, kw_only=True):
    """A change to ask for: `label` names it to people, such as `vm.stop`."""

    label: str
    name: str
    path: str
    body: Mapping[str, Any]
    request_id: str


def carry_out(session: Session, request: Request, waiting: Waiting) -> None:
    """One change, watched to its end. Raises Problem when it is refused or fails, Detached, Overdue."""
    try:
        answer = session.client.change(request.path, request.body, request_id=request.request_id)
    except KeyboardInterrupt:
        session.terminal.complain(
            "Interrupted while asking: it is not known whether the request arrived.\n"
            f"hint: repeat it with --request-id {request.request_id}; that cannot do it twice"
        )
        raise
    from cli.outcome import see_through

    see_through(session, request, answer, waiting)


def plan_or_carry_out(session: Session, request: Request, waiting: Waiting, *, dry_run: bool) -> None:
    """As `carry_out`, with a reason where one is demanded; with `dry_run` only what it would do. Raises SystemExit with
    the status for "there is a difference" after that."""
    if dry_run:
        from cli.plans import show_plan

        raise SystemExit(show_plan(session, request))
    session.demand_reason()
    carry_out(session, request, waiting)


def choose(session: Session, names: Sequence[str], selector: Mapping[str, str]) -> list[str]:
    """The VMs meant by names, globs, `-` (names on stdin) and labels, each once.

    Raises Problem: `no-such-vm` for a pattern that matches nothing, so that a typo is never a success;
    `bad-request` for a plain name beside a selector, which could mean either.
    """
    plain = [name for name in names if not any(letter in name for letter in "*?[")]
    if plain and selector:
        raise Problem(
            "bad-request",
            f"-l chooses among VMs, but {plain[0]} is named outright",
            hint="give patterns such as '*' with -l, or names without it",
        )
    meant: dict[str, None] = {}
    for name in names:
        if name == "-":
            import sys

            meant.update(dict.fromkeys(sys.stdin.read().split()))
        elif any(letter in name for letter in "*?["):
            meant.update(dict.fromkeys(_matching(session, name, selector)))
        else:
            meant[name] = None
    if selector and not names:
        meant.update(dict.fromkeys(_matching(session, None, selector)))
    return list(meant)


def _matching(session: Session, pattern: str | None, selector: Mapping[str, str]) -> list[str]:
    from cli.shapes import VmRow

    query = {"name": pattern, "label": [f"{key}={value}" for key, value in selector.items()]}
    found = [vm.name for page in session.client.pages("/v1/vms", query, VmRow) for vm in page.items]
    if not found:
        what = " and ".join(
            [*([repr(pattern)] if pattern else []), *(f"{key}={value}" for key, value in selector.items())]
        )
        raise Problem("no-such-vm", f"no VM matches {what}", hint="vmorch vm list")
    return found
