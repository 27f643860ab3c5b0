"""A backup: the disks of a VM at one moment, kept in a target beyond the life of the VM.

It is begun with the operation that takes it and is of use once its host has said what it made. What stands on it is
known by the others' parents. Must not decide where a backup goes or what it stands on.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import ClassVar

from msgspec.structs import replace

from vmorch.core.aggregates.vm import Operation, Vm, VmEvent
from vmorch.core.backup import Saved, Target, VerifiedBy
from vmorch.core.codec import unpack_host_command
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import Answer, Done, Failed, TakeBackup, VerifyBackup
from vmorch.core.ids import BackupId, HostId, VmId, stream
from vmorch.core.layers import Quality
from vmorch.core.messages import Event, message
from vmorch.core.operation import Change, Step, change
from vmorch.core.spec import VmSpec
from vmorch.core.value import Value

VERIFYING = "verify-backup"
"""The verb under which a backup is verified."""
CONCLUSIVE = frozenset({"backup-damaged", "not-ready"})
"""Failures of a verification that say something about the backup, and not about who looked at it."""


class Verification(Value, frozen=True, kw_only=True):
    """The newest look at a backup: how it was looked at, what came of it, and when."""

    by: VerifiedBy
    ok: bool
    why: str
    at: datetime


class Backup(Value, frozen=True, kw_only=True):
    """A backup, folded from its stream. It is whole once `saved` is there; `leaving`: its files are being deleted."""

    id: BackupId
    name: str = ""
    version: int = 0
    vm: VmId = VmId("")
    vm_name: str = ""
    spec: VmSpec | None = None
    host: HostId = HostId("")
    target: Target | None = None
    parent: BackupId | None = None
    quality: Quality = "off"
    description: str = ""
    begun_at: datetime | None = None
    made_at: datetime | None = None
    frozen: float | None = None
    saved: Saved | None = None
    verification: Verification | None = None
    leaving: bool = False
    gone: bool = False


class BackupEvent(Event, frozen=True, kw_only=True):
    """A fact about one backup."""

    subject: ClassVar[str] = "backup"

    def apply(self, backup: Backup, at: datetime) -> Backup:
        """The backup after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("backup.begun")
class BackupBegun(BackupEvent, frozen=True, kw_only=True):
    """A backup of this name is being taken of a VM as it is asked to be now. It shall stand on `parent`, if its host
    finds everything for that."""

    name: str
    vm: VmId
    vm_name: str
    spec: VmSpec
    host: HostId
    target: Target
    quality: Quality
    parent: BackupId | None = None
    description: str = ""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return replace(
            backup,
            name=self.name,
            vm=self.vm,
            vm_name=self.vm_name,
            spec=self.spec,
            host=self.host,
            target=self.target,
            quality=self.quality,
            parent=self.parent,
            description=self.description,
            begun_at=at,
        )


@message("backup.continued")
class BackupContinued(BackupEvent, frozen=True, kw_only=True):
    """Another backup is being taken that shall stand on this one, which therefore must stay."""

    by: BackupId

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return backup


@message("backup.made")
class BackupMade(BackupEvent, frozen=True, kw_only=True):
    """The backup is whole in its target, as its host says."""

    saved: Saved
    frozen: float | None = None
    """Seconds that the guest's file systems were held at rest for it."""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        parent = backup.parent if self.saved.kind == "incremental" else None
        return replace(backup, saved=self.saved, parent=parent, frozen=self.frozen, made_at=at)


@message("backup.abandoned")
class BackupAbandoned(BackupEvent, frozen=True, kw_only=True):
    """The backup did not come about, and nothing of it was left."""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return replace(backup, gone=True)


@message("backup.verified")
class BackupVerified(BackupEvent, frozen=True, kw_only=True):
    """Somebody looked whether the VM can be had back from the backup: it can, or `why` not."""

    by: VerifiedBy
    ok: bool
    why: str = ""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return replace(backup, verification=Verification(by=self.by, ok=self.ok, why=self.why, at=at))


@message("backup.leaving")
class BackupLeaving(BackupEvent, frozen=True, kw_only=True):
    """The backup's files are about to be deleted: nothing may stand on it any more."""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return replace(backup, leaving=True)


@message("backup.deleted")
class BackupDeleted(BackupEvent, frozen=True, kw_only=True):
    """Nothing of the backup is left in its target."""

    def apply(self, backup: Backup, at: datetime) -> Backup:
        return replace(backup, gone=True)


@message("vm.backed-up")
class VmBackedUp(VmEvent, frozen=True, kw_only=True):
    """The VM's writes are noted since this backup, so that the next one can stand on it."""

    backup: BackupId

    def apply(self, vm: Vm, at: datetime) -> Vm:
        return replace(vm, backup=self.backup, unnoted="")


def chain_of(backups: Mapping[BackupId, Backup], id: BackupId) -> tuple[Backup, ...]:
    """The backup and all that it stands on, the full one first. Raises Rejected `backup-broken` if one is not there or
    not whole."""
    found: list[Backup] = []
    following: BackupId | None = id
    while following is not None:
        backup = backups.get(following)
        if backup is None or backup.saved is None or backup.leaving or backup in found:
            name = following if backup is None else backup.name
            raise Rejected("backup-broken", f"backup {name} is not there, or not whole")
        found.append(backup)
        following = backup.parent
    return tuple(reversed(found))


def saved_of(chain: Iterable[Backup]) -> tuple[Saved, ...]:
    """What hosts are told of a chain."""
    return tuple(each.saved for each in chain if each.saved is not None)


def standing_on(backups: Mapping[BackupId, Backup], id: BackupId) -> list[Backup]:
    """The backups that stand on this one, whether directly or through others, nearest first."""
    children: dict[BackupId, list[Backup]] = {}
    for each in backups.values():
        if each.parent is not None:
            children.setdefault(each.parent, []).append(each)
    found: list[Backup] = list(children.get(id, ()))
    for each in found:
        found += children.get(each.id, ())
    return found


def heard(step: Step, answer: Answer) -> Answer:
    """The answer to a step, unless a host says that it has made a backup and does not say what."""
    if step.label != TakeBackup.label or not isinstance(answer, Done):
        return answer
    command = unpack_host_command(step.command)
    assert isinstance(command, TakeBackup)
    saved = answer.saved
    disks = [] if saved is None else [each.name for each in saved.disks]
    if saved is None or saved.backup != command.backup or disks != [disk.name for disk in command.spec.disks]:
        return Failed(code="fault", message="the host does not say what it made", observed=answer.observed)
    if saved.kind == "incremental" and not command.chain:
        return Failed(code="fault", message="the host made a backup that stands on nothing", observed=answer.observed)
    return answer


def consequences(vm: VmId, operation: Operation, index: int, answer: Answer) -> tuple[Change, ...]:
    """What an answer to a step says about a backup, to be appended with the fact that it was given."""
    label = operation.steps[index].label
    if label == TakeBackup.label and isinstance(answer, Done) and answer.saved is not None:
        at = stream("backup", answer.saved.backup)
        made = BackupMade(saved=answer.saved, frozen=answer.frozen)
        return change(at, made), change(stream("vm", vm), VmBackedUp(backup=answer.saved.backup))
    if operation.verb == VERIFYING and isinstance(answer, Failed) and answer.code in CONCLUSIVE:
        order = unpack_host_command(operation.steps[0].command)
        assert isinstance(order, VerifyBackup)
        by: VerifiedBy = "compare" if len(operation.steps) == 1 else "boot"
        failed = BackupVerified(by=by, ok=False, why=answer.message)
        return (change(stream("backup", order.chain[-1].backup), failed),)
    return ()
