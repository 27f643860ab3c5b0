"""What the terminal allows: colour, a line that rewrites itself, questions.

stdout carries data and nothing else; notes, progress, hints and errors go to stderr. Without a terminal nothing
is ever asked and nothing moves.
"""

import os
import sys
from typing import TextIO

STYLES = {
    "good": "32",
    "bad": "31",
    "warn": "33",
    "dim": "2",
    "bold": "1",
    "error": "1;31",
}


def colour_wanted(choice: str, stream: TextIO) -> bool:
    """Whether to colour on this stream: the flag, then NO_COLOR, CLICOLOR_FORCE, TERM=dumb, then the terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


class Terminal:
    """The process's standard streams, with the manners that the flags and the environment ask for."""

    def __init__(self, *, colour: str = "auto", no_input: bool = False, quiet: bool = False) -> None:
        self._out_colour = colour_wanted(colour, sys.stdout)
        self._err_colour = colour_wanted(colour, sys.stderr)
        self.quiet = quiet
        self.can_ask = sys.stdin.isatty() and sys.stderr.isatty() and not no_input
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self.out_is_tty = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._live_line = False

    def paint(self, style: str, text: str) -> str:
        """Text for stdout in a style."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and self._out_colour else text

    def paint_note(self, style: str, text: str) -> str:
        """Text for stderr in a style."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and self._err_colour else text

    def out(self, text: str) -> None:
        """A piece of the answer, on stdout."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def out_bytes(self, data: bytes) -> None:
        """A piece of the answer as it came, on stdout."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def note(self, text: str) -> None:
        """Progress or a remark, on stderr; nothing if quiet."""
        if not self.quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """An error, on stderr, quiet or not."""
        self.clear_live()
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)

    def show_live(self, text: str) -> None:
        """Rewrite the moving line. Only where stderr is a terminal."""
        if self.live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
            sys.stderr.flush()
            self._live_line = True

    def clear_live(self) -> None:
        """Take the moving line away, before anything else is written."""
        if self._live_line:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._live_line = False

    def ask(self, question: str) -> str:
        """What the operator types. Only where `can_ask`; an end of input is an empty answer."""
        self.clear_live()
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().strip()
