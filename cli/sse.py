"""Server-sent events from bytes, by the WHATWG rules.

Pure: fed with whatever the socket delivers, however it is cut. Must not know what the events mean.
"""

from msgspec import Struct


class ServerEvent(Struct, frozen=True):
    """One event: its type (`message` if unnamed), its data, and the last id seen on the stream."""

    event: str
    data: str
    id: str


class EventParser:
    """Collects lines into events. An event that is not closed by an empty line is never given out."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._after_cr = False
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that this chunk completes."""
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        buffer = self._rest + chunk
        if not self._begun and len(buffer) >= 3:
            self._begun = True
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
        # a CR at the very end may be half of a CRLF whose LF is still on its way
        self._after_cr = buffer.endswith(b"\r")
        pieces = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces.pop()
        found = [self._line(piece.decode("utf-8", "replace")) for piece in pieces]
        return [event for event in found if event is not None]

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._event = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return ServerEvent(event, "\n".join(data), self._id) if data else None
