"""A FAT partition that SYSLINUX boots, made from unpacked Debian packages.

SYSLINUX and not GRUB: under emulation it reads kernel and initramfs in 0.3 s where GRUB, which copies byte by byte
and switches processor modes for every 32 KiB, takes 2.7 s. Must not install anything on this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from deploy.lab.images.bootdisk import FAT16, SECTOR, Partition, blank
from deploy.lab.images.errors import run_tool

PACKAGES = ("mtools", "syslinux", "syslinux-common")
_LIBRARY = "usr/lib/syslinux"


def boot_code(tree: Path) -> bytes:
    """What the BIOS runs: it jumps to the active partition."""
    return (tree / _LIBRARY / "mbr/mbr.bin").read_bytes()


def boot_partition(tree: Path, place: Partition, files: dict[str, Path], command_line: str, scratch: Path) -> Path:
    """A FAT16 image for `place` holding `files`, of which `kernel` and `initrd` are booted at once."""
    assert place.kind == FAT16
    image = blank(scratch / "boot.fat", place.size)
    config = scratch / "syslinux.cfg"
    config.write_text(
        f"DEFAULT guest\nPROMPT 0\nTIMEOUT 0\nLABEL guest\n LINUX kernel\n INITRD initrd\n APPEND {command_line}\n"
    )
    # the tools call each other by name, and mtools asks for nothing when told so
    tools = os.environ | {"PATH": f"{tree / 'usr/bin'}:{os.environ['PATH']}", "MTOOLS_SKIP_CHECK": "1"}
    geometry = ["-T", str(place.size // SECTOR), "-h", "255", "-s", "63", "-H", str(place.start // SECTOR)]
    run_tool("mformat", "-i", image, *geometry, "-c", "8", "-v", "BOOT", "-N", "766d6f72", "::", environment=tools)
    modules = {"ldlinux.c32": tree / _LIBRARY / "modules/bios/ldlinux.c32", "syslinux.cfg": config}
    for name, source in {**files, **modules}.items():
        run_tool("mcopy", "-m", "-i", image, source, f"::{name}", environment=tools)
    run_tool("syslinux", "--install", image, environment=tools)
    return image
