"""One run of the CLI: the flags as typed, and what follows from them, each made when first needed.

Must not import anything that is slow to import: the help screens come through here too.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct

from cli.problems import Problem
from cli.settings import Settings, resolve
from cli.terminal import Terminal

if TYPE_CHECKING:
    from cli.client import Client
    from cli.units import TimeStyle


class Flags(Struct, kw_only=True):
    """The flags that every command takes; None where nothing was typed."""

    context: str | None = None
    api: str | None = None
    output: str | None = None
    query: str | None = None
    color: str | None = None
    time: "TimeStyle | None" = None
    quiet: bool = False
    debug: bool = False
    no_input: bool = False
    reason: str | None = None
    request_id: str | None = None
    as_of: str | None = None
    diff: tuple[str, str] | None = None


class Session:
    """What commands work with. Made once per process by the composition root."""

    def __init__(self) -> None:
        self.flags = Flags()

    @cached_property
    def settings(self) -> Settings:
        """The settings in force."""
        flags = self.flags
        return resolve(context=flags.context, api=flags.api, output=flags.output, reason=flags.reason)

    @cached_property
    def terminal(self) -> Terminal:
        """The standard streams."""
        flags = self.flags
        return Terminal(colour=flags.color or "auto", no_input=flags.no_input, quiet=flags.quiet)

    @cached_property
    def request_id(self) -> str:
        """The id of this run's change, so that a repeat with --request-id is the same change."""
        if self.flags.request_id:
            return self.flags.request_id
        from uuid import uuid4

        return str(uuid4())

    @cached_property
    def client(self) -> "Client":
        """The API."""
        from cli.client import Client

        return Client(self.settings, self.trace if self.flags.debug else None, self.flags.as_of)

    @property
    def times(self) -> "TimeStyle":
        """How moments are shown."""
        # a file outlives the moment that an age counts from
        return self.flags.time or ("utc" if self.settings.output == "csv" else "rel")

    def trace(self, line: str) -> None:
        """A line for --debug."""
        self.terminal.complain(f"debug: {line}")

    def demand_reason(self) -> None:
        """Refuse a change without a reason where the context is protected. Raises Problem `reason-missing`."""
        if self.settings.protected and not self.settings.reason.strip():
            raise Problem(
                "reason-missing",
                f"context {self.settings.context} is protected: every change needs a reason",
                hint='add -m "why", or set VMORCH_REASON',
            )

    def confirm(self, what: str, answer: str, *, yes: bool, asked_for: str = "name") -> None:
        """Go on only if the operator types `answer`, or said --yes. Raises Problem `confirmation-missing`."""
        if yes:
            return
        if not self.terminal.can_ask:
            raise Problem(
                "confirmation-missing", f"{what} is not done without confirmation", hint="add --yes"
            )
        self.terminal.note(what)
        typed = self.terminal.ask(f"Type the {asked_for} ({answer}) to go on: ")
        if typed != answer:
            raise Problem("confirmation-missing", "that was something else; nothing was done")
