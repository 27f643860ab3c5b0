"""How a host proves over HTTP who it is: a short-lived signature by its own key, and no secret on the wire.

The control plane checks it with `signed_text` and the key it pinned at enrolment. Must not send anything.
"""

from base64 import b64encode
from hashlib import sha256

from vmorch.core.ids import HostId
from vmorch.wire.envelopes import Signer


def signed_text(path: str, time: int, body: bytes | None = None) -> bytes:
    """What a host signs to GET `path` at `time` (unix seconds), or to POST `body` there."""
    if body is None:
        return f"GET {path} {time}".encode()
    return f"POST {path} {time} {sha256(body).hexdigest()}".encode()


def headers(path: str, keys: Signer, host: HostId, now: float, body: bytes | None = None) -> dict[str, str]:
    """The headers that let `host` GET `path` at about `now` (unix seconds), or POST `body` there."""
    time = int(now)
    digest = {} if body is None else {"X-Vmorch-Content-SHA256": sha256(body).hexdigest()}
    return digest | {
        "X-Vmorch-Host": host,
        "X-Vmorch-Time": str(time),
        "X-Vmorch-Signature": b64encode(keys.sign(signed_text(path, time, body))).decode("ascii"),
    }
