"""How a host proves over HTTP who it is: a short-lived signature by its own key, and no secret on the wire.

The control plane checks it with `signed_text` and the key it pinned at enrolment. Must not send anything.
"""

from base64 import b64encode

from vmorch.core.ids import HostId
from vmorch.wire.envelopes import Signer


def signed_text(path: str, time: int) -> bytes:
    """What a host signs to GET `path` at `time` (unix seconds)."""
    return f"GET {path} {time}".encode()


def headers(path: str, keys: Signer, host: HostId, now: float) -> dict[str, str]:
    """The headers that let `host` GET `path` at about `now` (unix seconds)."""
    time = int(now)
    return {
        "X-Vmorch-Host": host,
        "X-Vmorch-Time": str(time),
        "X-Vmorch-Signature": b64encode(keys.sign(signed_text(path, time))).decode("ascii"),
    }
