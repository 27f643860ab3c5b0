"""The agent's settings, from one TOML file; every value has a default that suits a plain libvirt host.

Must not look at the machine: settings say what is wanted, enrolment and libvirt say what is.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from vmorch.core.spec import NETWORK_PATTERN, Name

DEFAULT_PATH = Path("/etc/vmorch/agent.toml")
DEFAULT_HOOKS_DIR = Path("/etc/vmorch/hooks")


class AgentSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`state_dir` holds keys, identity and journal; `name` is asked for at enrolment."""

    state_dir: str = "/var/lib/vmorch-agent"
    name: Name | None = None


class LibvirtSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`accel`: auto takes KVM where it works."""

    uri: str = "qemu:///system"
    accel: Literal["auto", "kvm", "tcg"] = "auto"


class StorageSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Directories for disks and images; `shared_dir` is one that several hosts mount."""

    local_dir: str = "/var/lib/vmorch"
    shared_dir: str | None = None


class NetworkSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The libvirt network of NICs that name none."""

    default: Annotated[str, Meta(pattern=NETWORK_PATTERN)] | None = None


class MigrationSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How guests come from and go to other hosts.

    `address`: the name or IP address by which other hosts reach this one's libvirt; without it the machine's own host
    name. `pki_dir` holds the host's certificates and keys, `pki` in the state directory unless it is set. QEMU reads
    them, so `group` is that of its processes where those are not root's.
    """

    address: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:-]{1,253}$(?!\n)")] | None = None
    pki_dir: str | None = None
    group: str | None = None


class HooksSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dir` may hold executable files named after what they are run for, like `before-maintenance`."""

    dir: str = str(DEFAULT_HOOKS_DIR)


Backups = dict[Name, Annotated[str, Meta(pattern=r"^/", max_length=1024)]]
"""Directories for backups by the names that operators call them by. Each must exist: a mount that is missing must not
be taken for a target that is empty."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    agent: AgentSection = AgentSection()
    libvirt: LibvirtSection = LibvirtSection()
    storage: StorageSection = StorageSection()
    network: NetworkSection = NetworkSection()
    migration: MigrationSection = MigrationSection()
    hooks: HooksSection = HooksSection()
    backups: Backups = {}

    @property
    def state_dir(self) -> Path:
        return Path(self.agent.state_dir)

    @property
    def pki_dir(self) -> Path:
        return Path(self.migration.pki_dir) if self.migration.pki_dir else self.state_dir / "pki"


class BadConfig(Exception):
    """The configuration file cannot be used."""

    code = "bad-config"


def load_config(path: Path | None) -> Config:
    """The settings in a file; without `path`, those in the default place if there is such a file, else the
    defaults. Raises BadConfig."""
    try:
        data = (path or DEFAULT_PATH).read_bytes()
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise BadConfig(f"{path} does not exist") from error
    try:
        return msgspec.toml.decode(data, type=Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path or DEFAULT_PATH}: {error}") from error
