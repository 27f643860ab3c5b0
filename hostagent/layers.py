"""Make the files of disks and their layers: whole and durable, or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hostagent import qemu_img
from hostagent.layout import delete_file, draft_of, keep_draft, make_directory, opened, write_draft
from hostagent.overlay import LARGEST, empty_layer
from hostagent.qcow2 import read_layer
from vmorch.core.errors import Rejected
from vmorch.core.spec import ImageFormat


def make_disk(path: Path, size: int, base: Path | None, base_format: ImageFormat) -> None:
    """The file is a new qcow2 image of `size` virtual bytes that holds nothing, over `base` if there is one.
    Raises Rejected with qemu-img's own words."""
    draft = path.with_name(draft_of(path.name))
    draft.unlink(missing_ok=True)
    try:
        if base is None:
            qemu_img.create_empty(draft, size)
        else:
            qemu_img.create_overlay(draft, size, base, base_format)
        draft.chmod(0o600)
        make_durable(path.parent, draft.name, path.name)
    finally:
        draft.unlink(missing_ok=True)


def make_layer(path: Path, below: Path) -> None:
    """The file is a new layer, as large as the one that it stands on; one that holds nothing yet is made again.
    Raises Rejected."""
    draft_layer(path, below)
    keep_layer(path)


def draft_layer(path: Path, below: Path) -> None:
    """As `make_layer`, under the name of a draft, which nobody takes for a layer. Raises Rejected."""
    header, there = read_layer(below), read_layer(path)
    if header is None:
        raise Rejected("chain-drift", f"{below} is gone")
    if header.virtual_size > LARGEST:
        raise Rejected("not-ours", f"{below} says that it is a disk of {header.virtual_size} bytes")
    if there is not None and not there.empty:
        raise Rejected("chain-drift", f"{path} holds data already")
    with _nothing_left(path.parent, draft_of(path.name)):
        make_directory(path.parent)
        write_draft(path.parent, path.name, empty_layer(header.virtual_size, str(below)))


def keep_layer(path: Path) -> None:
    """The layer that was drafted has its name. Raises Rejected."""
    with _nothing_left(path.parent, path.name, draft_of(path.name)):
        keep_draft(path.parent, path.name)


def drop_draft(path: Path) -> None:
    """No draft of the layer is left."""
    delete_file(path.parent, draft_of(path.name))


@contextmanager
def _nothing_left(directory: Path, *names: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        for name in names:
            with suppress(OSError):
                delete_file(directory, name)
        code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "storage-failed"
        raise Rejected(code, f"{directory / names[0]}: {error.strerror}") from error


def make_durable(directory: Path, draft: str, final: str) -> None:
    """The draft has its final name, also after a power cut."""
    with opened(directory) as descriptor:
        assert descriptor is not None
        file = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(draft, final, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        os.fsync(descriptor)
