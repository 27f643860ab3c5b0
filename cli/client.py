"""The public API as calls: who asks and why goes with each request. Must not print or decide what is shown."""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from cli.problems import Problem
from cli.settings import Settings
from cli.transport import Answer, Query, Trace, Transport, parse_address, quote

if TYPE_CHECKING:
    # the shapes of answers are not needed to ask
    from cli.shapes import Accepted, Listing, Plan, Single
    from cli.sse import ServerEvent

T = TypeVar("T")

PAGE = 1000


class Client:
    """The API as the caller of these settings. Safe to share between threads.

    `as_of` is the moment that every read asks about; without it that is now.
    """

    def __init__(self, settings: Settings, trace: Trace | None = None, as_of: str | None = None) -> None:
        headers = {"User-Agent": "vmorch-cli"}
        if settings.token:
            headers["Authorization"] = f"Bearer {settings.token}"
        self._reason = settings.reason.strip()
        self._as_of = as_of
        self.transport = Transport(parse_address(settings.api), headers, trace)

    def get(
        self, path: str, query: Query | None = None, *, limit: float = 60.0, patient: bool = True
    ) -> Answer:
        """A document. `limit` in seconds."""
        if self._as_of is not None:
            query = {**(query or {}), "asOf": self._as_of}
        return self.transport.request("GET", path, query=query, limit=limit, patient=patient)

    def single(self, path: str, shape: type[T]) -> "Single[T]":
        """A document of one thing, decoded."""
        from cli.shapes import Single

        return decode(self.get(path).body, Single[shape])  # type: ignore[valid-type]  # as in `pages`

    def pages(self, path: str, query: Query, shape: type[T]) -> "Iterator[Listing[T]]":
        """A list, page by page, to its end or to the `limit` in the query."""
        from cli.shapes import Listing

        for body in self.bodies(path, query):
            yield decode(body, Listing[shape])  # type: ignore[valid-type]  # msgspec builds the type at run time

    def bodies(self, path: str, query: Query) -> Iterator[bytes]:
        """The pages of a list as they came."""
        from cli.shapes import Listing

        left = query.get("limit")
        cursor: str | int | None = None
        while True:
            asked = min(PAGE, left) if isinstance(left, int) else PAGE
            answer = self.get(
                path, {**query, "limit": asked, **({} if cursor is None else {"after": cursor})}
            )
            page = decode(answer.body, Listing[msgspec.Raw])
            yield answer.body
            if isinstance(left, int):
                left -= len(page.items)
            cursor = page.next
            if cursor is None or left == 0:
                return

    def change(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        request_id: str,
        method: Literal["POST", "PATCH"] = "POST",
        dry_run: bool = False,
        limit: float = 60.0,
    ) -> Answer:
        """Ask for a change. The same request id asks for the same change, however often it is sent."""
        query: dict[str, str | bool] = {"dryRun": True} if dry_run else {}
        if self._as_of is not None:
            query["asOf"] = self._as_of
        return self.transport.request(
            method,
            path,
            query=query or None,
            body=msgspec.json.encode(body),
            headers=self.change_headers(request_id),
            limit=limit,
        )

    def upload(
        self,
        name: str,
        source: IO[bytes],
        size: int,
        query: Query,
        *,
        request_id: str,
        progress: Callable[[int], None],
    ) -> Answer:
        """Send an image's bytes."""
        path = f"/v1/images/{quote(name)}/content"
        return self.transport.send_file(
            path, source, size, query=query, headers=self.change_headers(request_id), progress=progress
        )

    def stream(self, path: str, query: Query | None = None) -> "Generator[ServerEvent, None, None]":
        """Events as they come, until the stream ends. Raises Away, Problem."""
        return self.transport.stream("GET", path, query=query)

    def change_stream(
        self, path: str, body: Mapping[str, Any], *, request_id: str
    ) -> "Generator[ServerEvent, None, None]":
        """Ask for a change whose progress comes as events."""
        return self.transport.stream(
            "POST", path, body=msgspec.json.encode(body), headers=self.change_headers(request_id)
        )

    def change_headers(self, request_id: str) -> dict[str, str]:
        """What every change carries."""
        headers = {"Vmorch-Request-Id": request_id}
        if self._reason:
            # http.client sends text as Latin-1; the API reads these bytes as UTF-8
            headers["Vmorch-Reason"] = self._reason.encode().decode("latin-1")
        return headers


def decode(body: bytes, shape: type[T]) -> T:
    """A document in a shape. Raises Problem `internal-error` if it is none."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        raise Problem(
            "internal-error", f"the server's answer is not what this CLI understands: {error}"
        ) from error


def accepted(answer: Answer) -> "Accepted":
    """The receipt of a change."""
    from cli.shapes import Accepted

    return decode(answer.body, Accepted)


def planned(answer: Answer) -> "Plan":
    """The plan of a dry run."""
    from cli.shapes import Plan

    return decode(answer.body, Plan)
