"""What an operator may set about the HTTP API. Must not read files or the environment."""

from msgspec import Struct

from vmorch.edge.addresses import Network

GIB = 1024**3
TIB = 1024 * GIB


class EdgeSettings(Struct, frozen=True, kw_only=True):
    """The API's name and limits.

    `allowed_networks`: networks that images may be fetched from although they are not public. Times in seconds.
    """

    cluster: str
    version: str
    allowed_networks: tuple[Network, ...] = ()
    max_image_bytes: int = 64 * GIB
    max_virtual_size: int = 2 * TIB
    fetch_seconds: float = 3600.0
    enroll_burst: int = 10
    """Enrolments that may fail from one peer at once; afterwards one each `enroll_every` seconds."""
    enroll_every: float = 6.0
    keepalive: float = 10.0
    catch_up: float = 0.5
    """How long a read waits for what this server knows already."""
    answer: float = 3.0
    """How long status and doctor wait for Postgres before they call it silent."""
    settle: float = 5.0
    """How long a read waits for the position that it asks for."""
