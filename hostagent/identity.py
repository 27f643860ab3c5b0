"""Who this host is in its cluster, as enrolment left it in the state directory.

Every file here is for the agent alone (0600), and is replaced whole or not at all. Must not talk to anybody.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from vmorch.bus.private import write_private
from vmorch.core.ids import HostId

IDENTITY, CREDENTIALS, KEY, JOURNAL = "identity.json", "bus.jwt", "host.nk", "journal.sqlite"
MACHINE_ID = Path("/etc/machine-id")


class Identity(Struct, frozen=True, kw_only=True):
    """`key` is the host's public key, `server_key` the control plane's; `incarnation` is the log's."""

    host: HostId
    name: str
    cluster: str
    incarnation: str
    key: str
    machine_id: str
    server_key: str
    server_url: str
    nats_url: str


class NotEnrolled(Exception):
    """The state directory holds no identity, or one that cannot be read."""

    code = "not-enrolled"


def load_identity(state_dir: Path) -> Identity:
    """The identity in a state directory. Raises NotEnrolled."""
    path = state_dir / IDENTITY
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError as error:
        raise NotEnrolled(f"{path} does not exist: run `vmorch-agent enroll` first") from error
    except msgspec.MsgspecError as error:
        raise NotEnrolled(f"{path} is damaged ({error}): enroll again with --force") from error


def save_identity(state_dir: Path, identity: Identity) -> None:
    """Replace the identity in a state directory."""
    write_private(state_dir / IDENTITY, msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n")


def load_credentials(state_dir: Path) -> str:
    """The newest bus credentials. Raises NotEnrolled."""
    try:
        return (state_dir / CREDENTIALS).read_text().strip()
    except FileNotFoundError as error:
        raise NotEnrolled(f"{state_dir / CREDENTIALS} does not exist: enroll again with --force") from error


def save_credentials(state_dir: Path, credentials: str) -> None:
    """Replace the bus credentials."""
    write_private(state_dir / CREDENTIALS, credentials.encode() + b"\n")


def machine_id(path: Path = MACHINE_ID) -> str:
    """This machine's own id, or "" if it has none."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
