"""Write the archive Linux unpacks as its first root, byte for byte the same for the same input.

Must not compress: under emulation unpacking costs more than reading, and the disk holds it easily.
"""

from __future__ import annotations

import stat
from pathlib import Path


def _entry(inode: int, mode: int, name: str, content: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def pack(tree: Path) -> bytes:
    """A newc archive of `tree`, everything owned by root and dated 1970, plus the console Linux opens first."""
    parts = [
        _entry(1, stat.S_IFDIR | 0o755, "dev", b""),
        _entry(2, stat.S_IFCHR | 0o600, "dev/console", b"", (5, 1)),
        _entry(3, stat.S_IFCHR | 0o666, "dev/null", b"", (1, 3)),
    ]
    for inode, path in enumerate(sorted(tree.rglob("*")), start=len(parts) + 1):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            parts.append(_entry(inode, stat.S_IFLNK | 0o777, name, str(path.readlink()).encode()))
        elif path.is_dir():
            parts.append(_entry(inode, stat.S_IFDIR | 0o755, name, b""))
        else:
            executable = path.stat().st_mode & 0o100
            parts.append(_entry(inode, stat.S_IFREG | (0o755 if executable else 0o644), name, path.read_bytes()))
    return b"".join([*parts, _entry(0, 0, "TRAILER!!!", b"")])
