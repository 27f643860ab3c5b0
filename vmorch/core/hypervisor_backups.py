"""What commands about backups do to the model of a libvirt host, and what they refuse.

Files are told apart by digests over what they hold, as for real; so whoever damages one is found out.
"""

import hashlib
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from vmorch.core.backup import Saved, SavedDisk
from vmorch.core.hostcommands import Done, DropBackup, Failed, RestoreDisk, TakeBackup, VerifyBackup
from vmorch.core.hypervisor_layers import drift_of, stacks_named
from vmorch.core.hypervisor_state import (
    Domain,
    Effect,
    KeptBackup,
    LibvirtHost,
    content,
    disk_key,
    empty_file,
    layers,
    no_domain,
    observe,
    refused,
    with_files,
)
from vmorch.core.ids import BackupId, Digest, VmId
from vmorch.core.layers import Stack, chain

CLUSTER = 64 * 1024
Clusters = Mapping[int, int]


def take_backup(host: LibvirtHost, command: TakeBackup) -> Effect:
    vm, domain, there = command.vm, host.domains.get(command.vm), _target(host, command)
    if domain is None:
        return no_domain(host, vm)
    if isinstance(there, Failed):
        return host, there
    kept = there.get(command.backup)
    if kept is not None:
        return host, Done(observed=observe(host, vm), already=True, saved=kept.saved)
    stacks = stacks_named(command, [disk.name for disk in command.spec.disks])
    if isinstance(stacks, Failed):
        return host, stacks
    drifted = drift_of(host, command)
    if drifted is not None:
        return host, drifted
    if command.freeze is not None and (domain.power != "running" or vm in host.mute):
        return refused(host, vm, "the guest's agent does not answer", "freeze-failed")
    why = command.full or _footless(host, command, domain, stacks, there)
    since = None if why else command.chain[-1].backup
    made = _made(host, command, stacks, there, since, why)
    noted = {
        disk_key(stack.disk): replace(file, noted={name: file.noted[name] for name in _left(command, file.noted)}
        | {command.backup: frozenset()})
        for stack in stacks.values()
        for file in [host.disks[vm][disk_key(stack.disk)]]
    }  # fmt: skip
    after = with_files(host, vm, {**host.disks[vm], **noted})
    after = _with_backups(after, command.target.id, {**there, command.backup: made})
    frozen = None if command.freeze is None else 0.0
    return after, Done(observed=observe(after, vm), saved=made.saved, frozen=frozen)


def drop_backup(host: LibvirtHost, command: DropBackup) -> Effect:
    there = _target(host, command)
    if isinstance(there, Failed):
        return host, there
    if command.backup not in there:
        return host, Done(already=True)
    left = {id: kept for id, kept in there.items() if id != command.backup}
    return _with_backups(host, command.target.id, left), Done()


def verify_backup(host: LibvirtHost, command: VerifyBackup) -> Effect:
    there = _target(host, command)
    if isinstance(there, Failed):
        return host, there
    damaged = _damage(there, command.chain)
    return host, damaged or Done()


def restore_disk(host: LibvirtHost, command: RestoreDisk) -> Effect:
    vm, disk, key = command.vm, command.disk, disk_key(command.disk)
    there = _target(host, command)
    if isinstance(there, Failed):
        return host, there
    if key in host.disks.get(vm, {}):
        return host, Done(already=True)
    said = command.chain[-1].disk(disk.name)
    if said is None or said.size != disk.size << 30:
        return host, Failed(code="bad-request", message=f"the backup has no disk {disk.name} of {disk.size} GiB")
    damaged = _damage(there, command.chain, disk.name)
    if damaged is not None:
        return host, damaged
    if host.free.get(disk.storage, 0) < disk.size * 1024:
        return host, Failed(code="disk-full", message=f"{host.free.get(disk.storage, 0)} MiB of {disk.storage} left")
    read = {cluster: byte for cluster, byte in _read(there, command.chain, disk.name).items() if byte}
    file = replace(empty_file(disk), written=read)
    return with_files(host, vm, {**host.disks.get(vm, {}), key: file}), Done()


def _target(
    host: LibvirtHost, command: TakeBackup | DropBackup | VerifyBackup | RestoreDisk
) -> Mapping[BackupId, KeptBackup] | Failed:
    target = command.target
    if host.targets.get(target.name) != target.id:
        return Failed(code="no-such-target", message=f"this host has no target {target.name} with that id")
    return host.backups.get(target.id, {})


def _with_backups(host: LibvirtHost, target: str, backups: Mapping[BackupId, KeptBackup]) -> LibvirtHost:
    return replace(host, backups={**host.backups, target: backups})


def _footless(
    host: LibvirtHost,
    command: TakeBackup,
    domain: Domain,
    stacks: Mapping[str, Stack],
    there: Mapping[BackupId, KeptBackup],
) -> str:
    """Why the backup cannot stand on another one."""
    if not command.chain:
        return "it is the first"
    if not domain.active:
        return "the VM is off"
    lost = [each.backup for each in command.chain if each.backup not in there]
    if lost:
        return f"{lost[0]} is not in its target any more"
    since = command.chain[-1].backup
    for name, stack in stacks.items():
        if _noted(host, command.vm, stack, since) is None:
            return f"the writes to {name} since the last one are not noted"
    return ""


def _noted(host: LibvirtHost, vm: VmId, stack: Stack, since: BackupId) -> frozenset[int] | None:
    """What was written to the disk since that backup; None if that is not known."""
    found = layers(host, vm, stack.disk)
    clusters: frozenset[int] | None = None
    for layer in chain(stack.tree, stack.disk.layer):
        noted = found[layer].noted.get(since)
        if noted is None:
            break
        clusters = noted if clusters is None else clusters | noted
    return clusters


def _made(
    host: LibvirtHost,
    command: TakeBackup,
    stacks: Mapping[str, Stack],
    there: Mapping[BackupId, KeptBackup],
    since: BackupId | None,
    why: str,
) -> KeptBackup:
    held: dict[str, Clusters] = {}
    disks = []
    for disk in command.spec.disks:
        now = content(host, command.vm, stacks[disk.name].disk)
        held[disk.name] = now
        if since is not None:
            changed = _noted(host, command.vm, stacks[disk.name], since) or frozenset()
            held[disk.name] = {cluster: now.get(cluster, 0) for cluster in changed}
        whole = held[disk.name] if since is None else {**_read(there, command.chain, disk.name), **held[disk.name]}
        disks.append(
            SavedDisk(
                name=disk.name,
                size=disk.size << 30,
                bytes=len(held[disk.name]) * CLUSTER,
                sha256=_digest(held[disk.name]),
                content=_digest({cluster: byte for cluster, byte in whole.items() if byte}),
            )
        )
    saved = Saved(
        backup=command.backup,
        kind="full" if since is None else "incremental",
        disks=tuple(disks),
        why=why,
    )
    return KeptBackup(saved=saved, disks=held)


def _left(command: TakeBackup, noted: Mapping[BackupId, frozenset[int]]) -> Iterator[BackupId]:
    """What goes on being noted: since the last backup too, until it is certain that the new one is recorded."""
    return (name for name in noted if command.chain and name == command.chain[-1].backup)


def _read(there: Mapping[BackupId, KeptBackup], chain: tuple[Saved, ...], disk: str) -> dict[int, int]:
    read: dict[int, int] = {}
    for each in chain:
        read.update(there[each.backup].disks[disk])
    return read


def _damage(there: Mapping[BackupId, KeptBackup], chain: tuple[Saved, ...], disk: str | None = None) -> Failed | None:
    found = tuple(_differences(there, chain, disk))
    return Failed(code="backup-damaged", message="; ".join(found), blockers=found) if found else None


def _differences(there: Mapping[BackupId, KeptBackup], chain: tuple[Saved, ...], only: str | None) -> Iterator[str]:
    for each in chain:
        kept = there.get(each.backup)
        if kept is None:
            yield f"{each.backup} is gone"
            continue
        for disk in each.disks:
            if only in (None, disk.name) and _digest(kept.disks.get(disk.name, {})) != disk.sha256:
                yield f"{disk.name} of {each.backup} is not what was written"


def _digest(held: Clusters) -> Digest:
    return Digest(hashlib.sha256(msgspec.json.encode(sorted(held.items()))).hexdigest())
