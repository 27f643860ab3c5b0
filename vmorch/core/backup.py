"""What a backup is, and what a host says of one that it made: values only.

A backup holds every disk of a VM as it was at one moment. A full one stands by itself; an incremental one holds what
was written since the one before it, its parent. Must not know where files are.
"""

from typing import Annotated, Literal

from msgspec import Meta

from vmorch.core.ids import BackupId
from vmorch.core.layers import Quality
from vmorch.core.spec import DiskName, Name, Sha256, VmSpec
from vmorch.core.value import Value

BackupKind = Literal["full", "incremental"]
VerifiedBy = Literal["compare", "boot"]

TargetId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]


class Target(Value, frozen=True, kw_only=True):
    """A directory for backups: what its hosts call it, and its own id, by which they know that it is the same one."""

    name: Name
    id: TargetId


class SavedDisk(Value, frozen=True, kw_only=True):
    """One disk of a backup. `size` is the disk's and `bytes` what its file takes, both in bytes; `sha256` is of the
    file, and `content` of what the whole chain of backups restores to."""

    name: DiskName
    size: Annotated[int, Meta(ge=512, le=1 << 56)]
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Sha256
    content: Sha256


class Saved(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a host made. `why` tells why it is full although it might have been incremental."""

    backup: BackupId
    kind: BackupKind
    disks: Annotated[tuple[SavedDisk, ...], Meta(min_length=1, max_length=16)]
    why: str = ""

    def disk(self, name: str) -> SavedDisk | None:
        """The disk of that name."""
        return next((each for each in self.disks if each.name == name), None)


class Manifest(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies beside the files of a backup, so that they can be understood without the log."""

    version: Literal[1] = 1
    cluster: str
    vm: str
    name: str
    vm_name: str
    taken_at: str
    """RFC 3339, by the host's clock."""
    parent: BackupId | None
    quality: Quality
    spec: VmSpec
    saved: Saved
