"""Have QEMU note where its guest writes, from one backup to the next, and find out whether nothing was missed.

What is noted is kept by QEMU in the layers themselves, as a bitmap under our name for the backup. libvirt's own record
of it (a checkpoint) is lost when a guest moves and hinders much, so it is made only for the length of a call. Whether
the bitmaps are there is asked of QEMU each time.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import libvirt
from lxml import etree

from hostagent.commands._monitor import bitmaps_of, note_writes, written_by
from vmorch.core.errors import Rejected
from vmorch.core.ids import BackupId

_PREFIX = "vmorch-"
_FINEST, _MOST_BLOCKS = 4096, 2**28
"""Bytes of a block at the least, and how many blocks of a disk are noted at the most: a bitmap takes 32 MiB."""
_REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
_RECORD = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


def note_name(backup: BackupId) -> str:
    """Under which name the writes since a backup are noted."""
    return f"{_PREFIX}{backup}"


def is_note(name: str) -> bool:
    """Whether we made a bitmap of that name."""
    return name.startswith(_PREFIX)


def granularity(size: int) -> int:
    """In blocks of how many bytes writes to a disk of that size are noted."""
    found = _FINEST
    while size > found * _MOST_BLOCKS:
        found *= 2
    return found


def note(domain: Any, sizes: Mapping[str, int], backup: BackupId) -> None:
    """It is noted where the guest writes to these disks from now on. libvirt's own bitmaps have blocks of 64 KiB, so
    QEMU is told. Raises Rejected, libvirtError."""
    on = written_by(domain)
    for disk, size in sizes.items():
        if disk not in on:
            raise Rejected("libvirt-refused", f"QEMU knows of no {disk}")
        note_writes(domain, on[disk].node, note_name(backup), granularity(size))


def unnoted(domain: Any, disks: Iterable[str], since: BackupId) -> str:
    """Why it is not known where the guest wrote since that backup; empty if it is. Raises Rejected `busy`."""
    name, found = note_name(since), bitmaps_of(domain)
    for disk in disks:
        held = [any(each.name == name and each.holds for each in layer) for layer in found.get(disk, ())]
        there = [any(each.name == name for each in layer) for layer in found.get(disk, ())]
        # below the layer in which the noting began there is nothing to be noted, and above it no layer may lack it
        depth = held.index(False) if False in held else len(held)
        if depth == 0 or any(there[depth:]):
            return f"the writes to {disk} since the last one are not noted"
    return ""


def _checkpoint_xml(name: str, disks: Iterable[str]) -> str:
    """What libvirt is told of a bitmap of that name on these disks."""
    checkpoint = etree.Element("domaincheckpoint")
    etree.SubElement(checkpoint, "name").text = name
    etree.SubElement(checkpoint, "creationTime").text = "1"
    found = etree.SubElement(checkpoint, "disks")
    for disk in disks:
        etree.SubElement(found, "disk", name=disk, checkpoint="bitmap", bitmap=name)
    return etree.tostring(checkpoint, encoding="unicode")


def recall(domain: Any, disks: Iterable[str], since: BackupId) -> None:
    """libvirt knows of the bitmaps of that backup. Raises libvirtError."""
    domain.checkpointCreateXML(_checkpoint_xml(note_name(since), disks), _REDEFINE)


def forget(domain: Any) -> None:
    """libvirt knows of no bitmaps of ours; they stay. Raises libvirtError."""
    for checkpoint in domain.listAllCheckpoints():
        if is_note(checkpoint.getName()):
            checkpoint.delete(_RECORD)


def retire(domain: Any, keep: Collection[BackupId]) -> None:
    """Nothing is noted for any backups but these: each costs memory and a little at every write. Raises Rejected,
    libvirtError."""
    forget(domain)
    kept = {note_name(each) for each in keep}
    old: dict[str, list[str]] = {}
    for disk, layers in bitmaps_of(domain).items():
        for name in {each.name for layer in layers for each in layer}:
            if is_note(name) and name not in kept:
                old.setdefault(name, []).append(disk)
    for name, disks in sorted(old.items()):
        checkpoint = domain.checkpointCreateXML(_checkpoint_xml(name, disks), _REDEFINE)
        try:
            checkpoint.delete(0)
        except libvirt.libvirtError:
            forget(domain)
            raise
