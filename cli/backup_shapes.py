"""The parts of backups that the CLI shows, in light structs; see `cli.shapes`."""

from datetime import datetime

from msgspec import Struct

from cli.shapes import Spec


class Verification(Struct, frozen=True):
    """The newest look at a backup."""

    by: str
    ok: bool
    why: str = ""
    at: datetime | None = None


class Backup(Struct, frozen=True):
    """A backup; sizes in bytes."""

    id: str
    name: str
    state: str = ""
    vm: str = ""
    vm_name: str = ""
    kind: str | None = None
    why: str = ""
    parent: str | None = None
    children: list[str] = []
    target: str = ""
    host: str = ""
    quality: str = ""
    description: str = ""
    size: int = 0
    bytes: int = 0
    begun_at: datetime | None = None
    made_at: datetime | None = None
    frozen: float | None = None
    verification: Verification | None = None


class SavedDisk(Struct, frozen=True):
    """A disk of a backup; sizes in bytes."""

    name: str
    size: int = 0
    bytes: int = 0
    sha256: str = ""
    content: str = ""


class BackupDetail(Backup, frozen=True, kw_only=True):
    """A backup with everything about it."""

    spec: Spec
    chain: list[str] = []
    disks: list[SavedDisk] = []
    vm_exists: bool = False
