"""What commands about volumes and stray directories do to the model of a libvirt host, and what they refuse.

In the model the files of a volume are its VM's while it is a disk of one, and go back home afterwards. Of what nobody
owns the model has disks alone.
"""

from msgspec.structs import replace

from vmorch.core.hostcommands import (
    AttachDisk,
    BringBack,
    CopyDisk,
    DetachDisk,
    Done,
    Failed,
    FindStrays,
    GrowDisk,
    Purge,
    SetAside,
    Stray,
)
from vmorch.core.hypervisor_state import (
    EMPTY_DISK_MIB,
    Effect,
    File,
    LibvirtHost,
    at_home,
    content,
    covered,
    defined,
    disk_key,
    empty_file,
    layers,
    no_domain,
    observe,
    put,
    refused,
    with_files,
)
from vmorch.core.ids import VmId
from vmorch.core.spec import DiskSpec


def attach_disk(host: LibvirtHost, command: AttachDisk) -> Effect:
    vm, domain = command.vm, host.domains.get(command.vm)
    if domain is None:
        return no_domain(host, vm)
    disk = next((each for each in command.spec.disks if each.name == command.name), None)
    if disk is None:
        return refused(host, vm, f"the specification has no disk {command.name}", "bad-request")
    in_use = domain.disks if not domain.active or disk in domain.disks else (*domain.disks, disk)
    if domain.spec == command.spec and domain.found == command.spec and domain.disks == in_use:
        return put(host, vm, domain, already=True)
    owner, there = at_home(host, vm, disk)
    if disk_key(there) not in host.disks.get(owner, {}):
        return refused(host, vm, f"{disk_key(disk)} is gone", "chain-drift")
    hindered = covered(host, owner, [there])
    if hindered is not None:
        return host, hindered
    after = _moved(host, owner, there, vm, disk)
    return put(after, vm, replace(defined(domain, command.spec), disks=in_use))


def detach_disk(host: LibvirtHost, command: DetachDisk) -> Effect:
    vm, disk, domain = command.vm, command.disk, host.domains.get(command.vm)
    if domain is None:
        return _sent_home(host, vm, disk), Done(observed=observe(host, vm), already=True)
    left = tuple(each for each in domain.disks if each.name != disk.name)
    if domain.spec == command.spec and domain.found == command.spec and domain.disks == left:
        return put(_sent_home(host, vm, disk), vm, domain, already=True)
    if domain.disks != left and (domain.power == "paused" or vm in host.deaf):
        return refused(host, vm, f"the guest did not let go of {disk.name}", "device-held")
    return put(_sent_home(host, vm, disk), vm, replace(defined(domain, command.spec), disks=left))


def grow_disk(host: LibvirtHost, command: GrowDisk) -> Effect:
    vm, disk = command.vm, command.disk
    owner, there = at_home(host, vm, disk)
    file = host.disks.get(owner, {}).get(disk_key(there))
    seen = observe(host, vm) if vm in host.domains else None
    if file is None:
        return host, Failed(code="chain-drift", message=f"{disk_key(disk)} is gone", observed=seen)
    already = file.size >= disk.size
    grown = {**host.disks[owner], disk_key(there): file if already else replace(file, size=disk.size)}
    return with_files(host, owner, grown), Done(observed=seen, already=already)


def copy_disk(host: LibvirtHost, command: CopyDisk) -> Effect:
    owner, disk = at_home(host, command.vm, command.disk)
    if disk_key(disk) in host.disks.get(owner, {}):
        return host, Done(already=True)
    holder, source = at_home(host, command.vm, command.source)
    if disk_key(source) not in host.disks.get(holder, {}):
        return host, Failed(code="chain-drift", message=f"{disk_key(source)} is gone")
    if host.free.get(disk.storage, 0) < disk.size * 1024:
        return host, Failed(code="disk-full", message=f"{host.free.get(disk.storage, 0)} MiB of {disk.storage} left")
    copied = replace(empty_file(disk), written=content(host, holder, source))
    return with_files(host, owner, {**host.disks.get(owner, {}), disk_key(disk): copied}), Done()


def find_strays(host: LibvirtHost, command: FindStrays) -> Effect:
    found = [
        Stray(storage=storage, id=vm, files=tuple(sorted(files)), bytes=(EMPTY_DISK_MIB << 20) * len(files))
        for vm, held in sorted(host.disks.items())
        for storage in sorted({file.storage for file in held.values()})
        for files in [[_file(file) for file in held.values() if file.storage == storage]]
        if vm not in command.known and vm not in host.domains
    ]
    return host, Done(strays=tuple(found[: command.most]))


def set_aside(host: LibvirtHost, command: SetAside) -> Effect:
    key, held = (command.storage, command.id), host.disks.get(command.id, {})
    going = {name: file for name, file in held.items() if file.storage == command.storage}
    if not going:
        if key in host.aside:
            return host, Done(already=True)
        return host, Failed(code="no-such-stray", message=f"no directory {command.id}")
    if key in host.aside:
        return host, Failed(code="not-ours", message=f"{command.id} was set aside already")
    if command.id in host.domains:
        return host, Failed(code="busy", message=f"libvirt knows a domain {command.id}")
    after = with_files(host, command.id, {name: file for name, file in held.items() if name not in going})
    return replace(after, aside={**host.aside, key: going}), Done()


def bring_back(host: LibvirtHost, command: BringBack) -> Effect:
    key, held = (command.storage, command.id), host.disks.get(command.id, {})
    if key not in host.aside:
        return host, Done(already=True)
    if any(file.storage == command.storage for file in held.values()):
        return host, Failed(code="not-ours", message=f"{command.id} is there again")
    after = with_files(host, command.id, {**held, **host.aside[key]})
    return replace(after, aside={each: files for each, files in host.aside.items() if each != key}), Done()


def purge(host: LibvirtHost, command: Purge) -> Effect:
    key = (command.storage, command.id)
    left = {each: files for each, files in host.aside.items() if each != key}
    return replace(host, aside=left), Done(already=key not in host.aside)


def _moved(host: LibvirtHost, source: VmId, there: DiskSpec, vm: VmId, disk: DiskSpec) -> LibvirtHost:
    """The host with the files of a disk in another place."""
    if (source, disk_key(there)) == (vm, disk_key(disk)):
        return host
    going = layers(host, source, there)
    keys = {disk_key(file) for file in going.values()}
    after = with_files(host, source, {key: file for key, file in host.disks[source].items() if key not in keys})
    come = {disk_key(file): file for file in (replace(each, name=disk.name) for each in going.values())}
    return with_files(after, vm, {**after.disks.get(vm, {}), **come})


def _sent_home(host: LibvirtHost, vm: VmId, disk: DiskSpec) -> LibvirtHost:
    if disk.home is None or disk_key(disk) not in host.disks.get(vm, {}):
        return host
    return _moved(host, vm, disk, disk.home.vm, replace(disk, name=disk.home.name))


def _file(file: File) -> str:
    return f"{file.name}.{file.layer}.qcow2" if file.layer else f"{file.name}.qcow2"
