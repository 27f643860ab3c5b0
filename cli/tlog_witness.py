"""A witness that somebody else runs, by C2SP's tlog-witness: it keeps the newest checkpoint and demands growth.

Must not judge the log itself: what the witness refuses is passed on as it is.
"""

import http.client
import re
import urllib.parse
from collections.abc import Callable, Sequence

from cli.problems import Problem

LIMIT = 30.0
"""Seconds until a witness that is silent counts as away."""
MAX_ANSWER = 64 * 1024

_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n?")

Proof = Callable[[int], Sequence[str]]
"""The hashes that prove the growth from a size, in base64."""


def add_checkpoint(url: str, note: str, size: int, proof: Proof) -> str:
    """Have the witness at `url` see a checkpoint of `size` events; its signature lines.

    Raises Problem `log-tampered` if it saw a longer log or another one, `server-unreachable`, `bad-request`.
    """
    old = 0
    for _ in range(3):
        hashes = proof(old) if 0 < old < size else ()
        body = "".join((f"old {old}\n", *(f"{each}\n" for each in hashes), "\n", note))
        status, answer = _post(url, body.encode())
        match status:
            case 200:
                return answer.decode(errors="replace")
            case 409 if (told := _SIZE.fullmatch(answer)) is not None and int(told[1]) != old:
                seen = int(told[1])
                if seen > size:
                    raise Problem(
                        "log-tampered",
                        f"the log has {size} sealed events; the witness at {url} saw {seen} before",
                        facts={"checkpoint": note},
                    )
                old = seen
            case 409 | 422:
                raise Problem(
                    "log-tampered",
                    f"the log forked: its first {old} events are not those that the witness at {url} saw",
                    facts={"checkpoint": note, "witness": _said(answer)},
                )
            case _:
                raise Problem(
                    "bad-request",
                    f"the witness at {url} answered {status}: {_said(answer)}",
                    hint="it must know this log's origin and key" if status in (403, 404) else "",
                )
    raise Problem("server-unreachable", f"the witness at {url} does not say what it holds; others feed it too")


def _post(url: str, body: bytes) -> tuple[int, bytes]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Problem("bad-request", f"{url!r} is no address of a witness", hint="https://HOST[/PREFIX]")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=LIMIT)
    try:
        connection.request("POST", f"{parts.path.rstrip('/')}/add-checkpoint", body, {"Content-Type": "text/plain"})
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER)
    except (http.client.HTTPException, OSError) as error:
        raise Problem("server-unreachable", f"the witness at {url} does not answer: {error}") from error
    finally:
        connection.close()


def _said(answer: bytes) -> str:
    return answer[:200].decode(errors="replace").strip()
