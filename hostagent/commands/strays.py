"""Directories that nobody owns: found, set aside, had back, and deleted for good.

A directory is moved as a whole, in one stroke, so that what was set aside by mistake is had back as it was. Nothing is
deleted that was not set aside before, and nothing at all that libvirt knows a domain of.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hostagent.commands._domain import lookup
from hostagent.commands._host import Host
from hostagent.commands._qemu import qemu_of
from hostagent.commands._registry import handles
from hostagent.hypervisor import Scope
from hostagent.layout import is_vm_id, make_directory, opened, regular_file
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import BringBack, Done, FindStrays, Purge, SetAside, Stray, StrayCommand
from vmorch.core.ids import VmId

_MOST_FILES, _LONGEST = 20, 64


def _never(_command: object, _host: Host) -> bool:
    return False


@handles(FindStrays, reached=_never)
def find_strays(command: FindStrays, host: Host, scope: Scope) -> Done:
    found: list[Stray] = []
    for stray in _strays(host, frozenset(command.known)):
        scope.check()
        found.append(stray)
        if len(found) >= command.most:
            break
    return Done(strays=tuple(found))


def _strays(host: Host, known: frozenset[VmId]) -> Iterator[Stray]:
    for storage in host.layout.storages:
        place = host.layout.vms(storage)
        names = sorted(os.listdir(place)) if place.is_dir() else []
        for name in names:
            vm = VmId(name)
            if not is_vm_id(name) or vm in known or (place / name).is_symlink() or not (place / name).is_dir():
                continue
            if lookup(host.link.queries, vm) is None:
                files = sorted((each for each in os.scandir(place / name)), key=lambda each: each.name)
                size = sum(each.stat(follow_symlinks=False).st_blocks * 512 for each in files)
                told = tuple(each.name[:_LONGEST] for each in files[:_MOST_FILES])
                yield Stray(storage=storage, id=vm, files=told, bytes=size)


def _here(command: StrayCommand, host: Host) -> Path:
    return host.layout.vm(command.storage, command.id)


def _aside(command: StrayCommand, host: Host) -> Path:
    return host.layout.aside(command.storage) / _here(command, host).name


def _is_aside(command: SetAside, host: Host) -> bool:
    return not os.path.lexists(_here(command, host)) and _aside(command, host).is_dir()


@handles(SetAside, reached=_is_aside)
def set_aside(command: SetAside, host: Host, scope: Scope) -> Done:
    if _is_aside(command, host):
        return Done(already=True)
    here, aside = _here(command, host), _aside(command, host)
    if here.is_symlink() or not here.is_dir():
        raise Rejected("no-such-stray", f"{here} is no directory")
    if aside.exists():
        raise Rejected("not-ours", f"{aside} is there already")
    if lookup(host.link.calls, command.id) is not None or qemu_of(command.id) is not None:
        raise Rejected("busy", f"libvirt knows a domain {command.id}")
    for each in here.iterdir():
        if _is_in_use(each):
            raise Rejected("busy", f"{each} is in use")
    make_directory(aside.parent)
    here.rename(aside)
    return Done()


def _is_in_use(path: Path) -> bool:
    """Whether a QEMU has the file open: it holds locks on it for as long."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # QEMU holds shared locks on single bytes; whoever wants all of them for himself meets each
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)
    return False


def _is_back(command: BringBack, host: Host) -> bool:
    return _here(command, host).is_dir() and not _aside(command, host).exists()


@handles(BringBack, reached=_is_back)
def bring_back(command: BringBack, host: Host, scope: Scope) -> Done:
    here, aside = _here(command, host), _aside(command, host)
    if not aside.exists():
        # it was never moved, or is back
        return Done(already=True)
    if os.path.lexists(here):
        raise Rejected("not-ours", f"{here} is there again")
    make_directory(here.parent)
    aside.rename(here)
    return Done()


def _is_purged(command: Purge, host: Host) -> bool:
    return not _aside(command, host).exists()


@handles(Purge, reached=_is_purged)
def purge(command: Purge, host: Host, scope: Scope) -> Done:
    aside = _aside(command, host)
    with opened(aside) as directory:
        if directory is None:
            return Done(already=True)
        for name in os.listdir(directory):
            # a link or a directory is nothing that we ever made there
            if regular_file(directory, name) is not None:
                os.unlink(name, dir_fd=directory)
    os.rmdir(aside)
    return Done()
