"""A real libvirtd of its own for a test module, and orders carried out on it. Needs root; skips with a reason."""

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.lab.lab import Lab
from hostagent.libvirt_hypervisor import LibvirtHypervisor
from vmorch.core.ids import Digest
from vmorch.core.spec import ImageFormat, ImagePin

CLUSTER = "contract"
_TOOLS = ("libvirtd", "qemu-img", "qemu-system-x86_64", "ip")


class ImageServer:
    """Serves one image's bytes over HTTP, as badly as it is told to."""

    def __init__(self, image: bytes) -> None:
        self.image = image
        self.break_after: int | None = None
        """Bytes after which a transfer breaks off, once."""
        self.ranges: list[str | None] = []
        self.headers: list[str | None] = []
        self.status = 200
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        images = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("range")
                images.ranges.append(wanted)
                images.headers.append(self.headers.get("x-host"))
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                if images.status != 200:
                    self.send_error(images.status)
                    return
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("content-range", f"bytes {start}-{len(images.image) - 1}/{len(images.image)}")
                self.send_header("content-length", str(len(images.image) - start))
                self.end_headers()
                end, images.break_after = images.break_after, None
                self.wfile.write(images.image[start:end])

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler


def pin(image: bytes, virtual_size: int, format: ImageFormat = "qcow2") -> ImagePin:
    """How an order names these bytes."""
    digest = Digest(hashlib.sha256(image).hexdigest())
    return ImagePin(digest=digest, format=format, size=len(image), virtual_size=virtual_size)


def empty_qcow2(directory: Path, size: str = "64M") -> bytes:
    """A qcow2 image that holds nothing."""
    path = directory / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    return path.read_bytes()


def skip_without_libvirt() -> None:
    """Skip where no libvirtd of our own can be started."""
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of our own needs root")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@contextmanager
def lab_of(hosts: int, directory: Path) -> Iterator[Lab]:
    """A lab that no other run shares, gone afterwards."""
    skip_without_libvirt()
    lab = Lab(f"t{uuid4().hex[:8]}", directory / "lab")
    try:
        lab.up(hosts, control=False)
        yield lab
    finally:
        lab.down()


def hypervisor_on(
    uri: str,
    local: Path,
    shared: Path | None,
    url: str,
    hooks: Path = Path("/nonexistent"),
    backups: Mapping[str, Path] | None = None,
    qemu_dir: Path = Path("/nonexistent"),
) -> LibvirtHypervisor:
    """The agent's hypervisor for a lab host, emulating."""

    def headers(path: str) -> dict[str, str]:
        return {"x-host": f"signed {path}"}

    return LibvirtHypervisor(
        uri, local, shared, None, "tcg", CLUSTER, lambda: url, headers, hooks_dir=hooks, backups=backups,
        qemu_dir=qemu_dir,
    )  # fmt: skip
