"""Keep verified images by the digest of their bytes, on each storage that disks stand on.

A file in the cache has been read to its end, has the right digest and a header that our own reader accepted;
it is never written again. A disk's base lies on the disk's own storage, so that whoever sees the disk sees its
base. Must not trust what a server sends: not its length, not its order, not its bytes.
"""

import contextlib
import errno
import hashlib
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx2

from hostagent.hypervisor import Scope
from hostagent.layout import Layout, free_bytes, make_directory
from vmorch.core.errors import Rejected
from vmorch.core.image_header import read_image_header
from vmorch.core.spec import ImagePin, Storage

CHUNK = 1024 * 1024
FRUITLESS_ATTEMPTS = 6
"""How often in a row a transfer may break off without a new byte before it is given up."""
_FIRST_WAIT = 0.2
_TIMEOUT = httpx2.Timeout(30.0, connect=10.0)


class ImageCache:
    """The images of one host. Thread-safe for different images; one image is fetched in one lane."""

    def __init__(
        self, layout: Layout, base_url: Callable[[], str], request_headers: Callable[[str], dict[str, str]]
    ) -> None:
        self._layout = layout
        self._base_url = base_url
        self._request_headers = request_headers
        self._copying: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()
        self._http: httpx2.Client | None = None

    def has(self, pin: ImagePin) -> bool:
        """Whether the image is in the cache of any storage."""
        return any(_is_whole(self._layout.image(storage, pin), pin) for storage in self._layout.storages)

    def fetch(self, pin: ImagePin, path: str, scope: Scope) -> None:
        """The image is in the local cache, read from `path` of the control plane. Continues where an earlier
        fetch broke off, in this process or a former one. Raises Rejected, Withdrawn, Expired."""
        target = self._layout.image("local", pin)
        part = target.with_suffix(".part")
        make_directory(target.parent)
        try:
            with _no_space_is_refused(), part.open("ab+") as file:
                self._fill(file, pin, path, scope)
                _verify(file, pin, scope)
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
        except Rejected as refusal:
            if refusal.code != "image-unavailable":
                part.unlink(missing_ok=True)
            raise
        _put(part, target)

    def base(self, pin: ImagePin, storage: Storage, scope: Scope) -> Path:
        """The image's file on that storage, copied from another one of this host if need be.
        Raises Rejected `no-image`, `disk-full`, Withdrawn, Expired."""
        target = self._layout.image(storage, pin)
        if _is_whole(target, pin):
            return target
        with self._lock:
            copying = self._copying.setdefault(target, threading.Lock())
        with copying:
            if not _is_whole(target, pin):
                self._copy(self._anywhere(pin), target, pin, scope)
        return target

    def close(self) -> None:
        """Let go of connections."""
        if self._http is not None:
            self._http.close()

    def _anywhere(self, pin: ImagePin) -> Path:
        for storage in self._layout.storages:
            found = self._layout.image(storage, pin)
            if _is_whole(found, pin):
                return found
        raise Rejected("no-image", f"image {pin.digest} is not in this host's cache")

    def _copy(self, source: Path, target: Path, pin: ImagePin, scope: Scope) -> None:
        make_directory(target.parent)
        # other hosts may be copying the same image to the same place
        draft = target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            with _no_space_is_refused(), source.open("rb") as old, draft.open("wb+") as new:
                while chunk := old.read(CHUNK):
                    scope.check()
                    new.write(chunk)
                _verify(new, pin, scope)
                os.fchmod(new.fileno(), 0o444)
                os.fsync(new.fileno())
            _put(draft, target)
        finally:
            draft.unlink(missing_ok=True)

    def _fill(self, file: BinaryIO, pin: ImagePin, path: str, scope: Scope) -> None:
        fruitless = 0
        while (before := _length(file)) < pin.size:
            scope.check()
            missing, free = pin.size - before, free_bytes(self._layout.images("local"))
            if free < missing:
                raise Rejected("disk-full", f"the image needs {missing} more bytes and {free} are free")
            try:
                self._read_on(file, pin, path, scope)
            except (httpx2.TransportError, httpx2.DecodingError, _ServerTrouble) as error:
                fruitless = 0 if _length(file) > before else fruitless + 1
                if fruitless >= FRUITLESS_ATTEMPTS:
                    raise Rejected("image-unavailable", f"GET {path}: {error or type(error).__name__}") from error
                scope.pause(_FIRST_WAIT * 2**fruitless)

    def _read_on(self, file: BinaryIO, pin: ImagePin, path: str, scope: Scope) -> None:
        start = _length(file)
        headers = {**self._request_headers(path), "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        with self._client().stream("GET", self._base_url().rstrip("/") + path, headers=headers) as answer:
            if answer.status_code >= 500 or answer.status_code in (408, 429):
                raise _ServerTrouble(f"the control plane answered {answer.status_code}")
            if answer.status_code not in (200, 206):
                raise Rejected("image-unavailable", f"GET {path}: the control plane answered {answer.status_code}")
            if start and not _continues(answer, start):
                file.truncate(0)
                if answer.status_code == 206:
                    raise _ServerTrouble("the control plane sent another part than was asked for")
            for chunk in answer.iter_raw(CHUNK):
                scope.check()
                if _length(file) + len(chunk) > pin.size:
                    raise Rejected("image-digest-mismatch", f"the server sent more than {pin.size} bytes")
                file.write(chunk)
                file.flush()
        if _length(file) < pin.size:
            raise _ServerTrouble("the transfer ended early")

    def _client(self) -> httpx2.Client:
        with self._lock:
            if self._http is None:
                # no proxies from the environment: the bytes come from the control plane and nobody else
                context = ssl.create_default_context()
                self._http = httpx2.Client(timeout=_TIMEOUT, trust_env=False, verify=context)
            return self._http


class _ServerTrouble(Exception):
    """The server or the way to it failed; asking again may help."""


def _continues(answer: httpx2.Response, start: int) -> bool:
    return answer.status_code == 206 and answer.headers.get("content-range", "").startswith(f"bytes {start}-")


def _length(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size


def _is_whole(path: Path, pin: ImagePin) -> bool:
    # its bytes were verified before it got this name
    try:
        return path.is_file() and not path.is_symlink() and path.stat().st_size == pin.size
    except FileNotFoundError:
        return False


def _verify(file: BinaryIO, pin: ImagePin, scope: Scope) -> None:
    """The bytes are the image's, and it is what its pin says. Raises Rejected."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK):
        scope.check()
        digest.update(chunk)
    if digest.hexdigest() != pin.digest:
        raise Rejected("image-digest-mismatch", f"the bytes have the digest {digest.hexdigest()}, not {pin.digest}")

    def read_at(offset: int, length: int) -> bytes:
        return os.pread(file.fileno(), length, offset)

    header = read_image_header(read_at, pin.size, max_virtual_size=pin.virtual_size, declared=pin.format)
    if header.virtual_size != pin.virtual_size:
        raise Rejected(
            "hostile-image", f"the image's disk has {header.virtual_size} bytes, not {pin.virtual_size} as recorded"
        )


def _put(draft: Path, target: Path) -> None:
    os.rename(draft, target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _no_space_is_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Rejected("disk-full", f"writing the image: {os.strerror(error.errno)}") from error
        raise
