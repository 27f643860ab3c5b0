"""What people and programs read about backups: one shape, computed from the fleet."""

from datetime import datetime
from typing import Any

from vmorch.core.aggregates.backup import Backup, Verification, standing_on
from vmorch.core.backup import BackupKind, SavedDisk
from vmorch.core.fleet import Fleet
from vmorch.core.ids import BackupId, OperationId
from vmorch.core.layers import Quality
from vmorch.core.resources import shown
from vmorch.core.spec import VmSpec
from vmorch.core.value import Value


class BackupResource(Value, frozen=True, kw_only=True):
    """A backup as people see it. `state` is taking, whole, unfinished (its operation got stuck) or deleting; a `kind`
    it has once it is whole, and `why` tells why it is full. `parent` is the backup that it stands on and `children`
    stand on it directly. `bytes` is what its files take, and `size` what its disks hold at most, both in bytes."""

    id: str
    name: str
    state: str
    vm: str
    vm_name: str
    kind: BackupKind | None
    why: str
    parent: str | None
    children: tuple[str, ...]
    target: str
    host: str
    quality: Quality
    description: str
    size: int
    bytes: int
    begun_at: datetime | None
    made_at: datetime | None
    frozen: float | None
    verification: Verification | None
    version: int


class BackupDetail(BackupResource, frozen=True, kw_only=True):
    """A backup with everything about it. `chain` is all that is read to restore it, the full one first; `vm_exists`
    tells whether the VM that it was taken of is still there."""

    chain: tuple[str, ...]
    disks: tuple[SavedDisk, ...]
    spec: VmSpec
    vm_exists: bool


def backup_resource(fleet: Fleet, backup: Backup) -> BackupResource:
    """A backup of the fleet."""
    return BackupResource(**_fields(fleet, backup))


def backup_detail(fleet: Fleet, backup: Backup) -> BackupDetail:
    """A backup of the fleet, and what it stands on."""
    assert backup.spec is not None
    chain: list[str] = []
    following: Backup | None = backup
    while following is not None:
        chain.append(following.name)
        following = None if following.parent is None else fleet.backups.get(following.parent)
    vm = fleet.vms.get(backup.vm)
    return BackupDetail(
        **_fields(fleet, backup),
        chain=tuple(reversed(chain)),
        disks=() if backup.saved is None else backup.saved.disks,
        spec=shown(backup.spec),
        vm_exists=vm is not None and vm.deleted_at is None,
    )


def _fields(fleet: Fleet, backup: Backup) -> dict[str, Any]:
    saved, host = backup.saved, fleet.hosts.get(backup.host)
    disks = () if saved is None else saved.disks
    above = [each.name for each in standing_on(fleet.backups, backup.id) if each.parent == backup.id]
    return {
        "id": backup.id,
        "name": backup.name,
        "state": _state(fleet, backup),
        "vm": backup.vm,
        "vm_name": backup.vm_name,
        "kind": None if saved is None else saved.kind,
        "why": "" if saved is None else saved.why,
        "parent": None if backup.parent is None else _name(fleet, backup.parent),
        "children": tuple(above),
        "target": "" if backup.target is None else backup.target.name,
        "host": backup.host if host is None else host.name,
        "quality": backup.quality,
        "description": backup.description,
        "size": sum(disk.size for disk in disks),
        "bytes": sum(disk.bytes for disk in disks),
        "begun_at": backup.begun_at,
        "made_at": backup.made_at,
        "frozen": backup.frozen,
        "verification": backup.verification,
        "version": backup.version,
    }


def _state(fleet: Fleet, backup: Backup) -> str:
    if backup.leaving:
        return "deleting"
    if backup.saved is not None:
        return "whole"
    vm = fleet.vms.get(backup.vm)
    return "taking" if vm is not None and vm.active == OperationId(backup.id) else "unfinished"


def _name(fleet: Fleet, id: BackupId) -> str:
    found = fleet.backups.get(id)
    return id if found is None else found.name
