"""The parts of volumes that the CLI shows, in light structs; see `cli.shapes`."""

from datetime import datetime

from msgspec import Struct


class Volume(Struct, frozen=True):
    """A volume; `size` in GiB, `bytes` of a directory that was set aside."""

    id: str
    name: str
    state: str = ""
    size: int = 0
    storage: str = ""
    host: str = ""
    vm: str | None = None
    disk: str | None = None
    image: str | None = None
    source: str = ""
    quarantined_at: datetime | None = None
    created_at: datetime | None = None
    stray: bool = False
    files: list[str] = []
    bytes: int = 0
    path: str = ""


class Stray(Struct, frozen=True):
    """A directory on a host that nobody owns."""

    id: str
    name: str
    host: str = ""
    storage: str = ""
    files: list[str] = []
    bytes: int = 0
    seen_at: datetime | None = None


class HostName(Struct, frozen=True):
    """A host, as far as it can be asked."""

    name: str
    state: str = ""
