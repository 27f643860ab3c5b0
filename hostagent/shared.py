"""Name a shared storage, so that hosts can tell whether they see the same files."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

_NAME = "storage-id"


def shared_id(root: Path) -> str:
    """The storage's own name: whoever comes first gives it, all others read it."""
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    path = root / _NAME
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    draft = root / f".{_NAME}.{secrets.token_hex(8)}"
    draft.write_text(secrets.token_hex(16) + "\n")
    try:
        # a link is made only if nobody else was faster, also on network file systems
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    return path.read_text().strip()
