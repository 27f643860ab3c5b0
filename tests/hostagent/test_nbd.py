"""Exports as a real server gives them, and what a hostile one says."""

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from contract import scope
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostagent.hypervisor import Expired, Withdrawn
from hostagent.nbd import CHUNK, Export, Stretch
from hostagent.scope import OrderScope
from vmorch.core.errors import Rejected

SIZE, PART = 8 * 2**20, 4096
SERVER, NAME, BITMAP = "nbd.sock", "vda", "written"
CONTEXT = f"qemu:dirty-bitmap:{BITMAP}".encode()
needs_qemu = pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="qemu-nbd is not installed")


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def answers(server: Path) -> bool:
    """Whether somebody listens there, which is a moment after the socket has its name."""
    with socket.socket(socket.AF_UNIX) as asking, suppress(FileNotFoundError, ConnectionRefusedError):
        asking.connect(str(server))
        return True
    return False


@contextmanager
def exported(directory: Path, writes: dict[int, int], holes: tuple[int, int] | None = None) -> Iterator[None]:
    """A disk of SIZE bytes full of sevens, after these parts of it were overwritten, each with a byte, and with so many
    bytes of zeros at some place."""
    disk, server = directory / "disk", directory / SERVER
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, str(SIZE))
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {SIZE}", disk)
    if holes is not None:
        run("qemu-io", "-f", "qcow2", "-c", f"write -z {holes[0]} {holes[1]}", disk)
    run("qemu-img", "bitmap", "--add", "-g", str(PART), "-f", "qcow2", disk, BITMAP)
    orders = [word for at, byte in writes.items() for word in ("-c", f"write -P {byte} {at * PART} {PART}")]
    if orders:
        run("qemu-io", "-f", "qcow2", *orders, disk)
    run("qemu-img", "bitmap", "--disable", "-f", "qcow2", disk, BITMAP)
    words = ["qemu-nbd", "-r", "-t", "-e", "0", "-f", "qcow2", "-x", NAME, "-B", BITMAP, "-k", str(server), str(disk)]
    process = subprocess.Popen(words)
    try:
        deadline = time.monotonic() + 20
        while not answers(server):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        yield
    finally:
        process.kill()
        process.wait()


def opened(directory: Path, name: str = NAME, bitmap: str = BITMAP) -> Export:
    return Export(directory, SERVER, name, bitmap, SIZE, scope())


@needs_qemu
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, SIZE // PART - 1), st.integers(0, 255), max_size=30))
def test_every_part_that_was_written_to_is_told_and_read_as_it_is(writes: dict[int, int]) -> None:
    with TemporaryDirectory() as place, exported(Path(place), writes), opened(Path(place)) as export:
        stretches = list(export.written())
        found = {at // PART for start, length in stretches for at in range(start, start + length, PART)}
        assert found == set(writes)
        for start, data in export.read(stretches):
            for at in range(0, len(data), PART):
                assert data[at : at + PART] == bytes([writes[(start + at) // PART]]) * PART


@needs_qemu
def test_what_is_long_comes_in_pieces_in_its_order(tmp_path: Path) -> None:
    with exported(tmp_path, {0: 1, SIZE // PART - 1: 2}), opened(tmp_path) as export:
        pieces = list(export.read([Stretch(PART // 2, SIZE - PART // 2), Stretch(0, 512)]))
    assert [start for start, _ in pieces] == [*range(PART // 2, SIZE, CHUNK), 0]
    whole = b"".join(bytes(data) for _, data in pieces)
    assert whole == b"\1" * (PART // 2) + b"\7" * (SIZE - 2 * PART) + b"\2" * PART + b"\1" * 512


@needs_qemu
def test_what_the_server_calls_a_hole_is_zeros(tmp_path: Path) -> None:
    with exported(tmp_path, {}, holes=(PART, 2 * CHUNK)), opened(tmp_path) as export:
        found = b"".join(bytes(data) for _, data in export.read([Stretch(0, 2 * CHUNK + 2 * PART)]))
    assert found == b"\7" * PART + bytes(2 * CHUNK) + b"\7" * PART


@needs_qemu
def test_nothing_that_is_not_exported_is_taken_for_empty(tmp_path: Path) -> None:
    with exported(tmp_path, {}):
        for name, bitmap in (("vdb", BITMAP), (NAME, "another")):
            with pytest.raises(Rejected) as refused:
                opened(tmp_path, name, bitmap)
            assert refused.value.code == "backup-failed"
        with opened(tmp_path) as export, pytest.raises(Rejected) as refused:
            list(export.read([Stretch(SIZE, PART)]))
        assert refused.value.code == "backup-failed"


def test_a_server_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path)


# --- what a server may say whose guest has got the better of it -----------------------------------------------------

GREETING = b"NBDMAGICIHAVEOPT" + (1).to_bytes(2, "big")


def told(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def answer(kind: int, data: bytes = b"", *, handle: int = 1, last: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, last, kind, handle, len(data)) + data


def shown(size: int) -> bytes:
    return told(7, 3, b"\0\0" + size.to_bytes(8, "big") + b"\0\1") + told(7, 3, b"\0\3" + bytes(12)) + told(7, 1)


CHOSEN = GREETING + told(8, 1) + told(10, 4, (9).to_bytes(4, "big") + CONTEXT) + told(10, 1)
AGREED = CHOSEN + shown(SIZE)


@contextmanager
def saying(directory: Path, words: bytes, *, then_hang: bool = False) -> Iterator[None]:
    """A server that says this to whoever comes, whatever he asks, and closes the connection or leaves it open."""
    listener, over = socket.socket(socket.AF_UNIX), threading.Event()
    listener.bind(str(directory / SERVER))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(words)
            if then_hang:
                over.wait(20)
            else:
                connection.shutdown(socket.SHUT_WR)
                # who closes with words unread resets the connection
                with suppress(ConnectionResetError):
                    while connection.recv(4096):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def read(export: Export) -> object:
    return list(export.read([Stretch(PART, PART)]))


def written(export: Export) -> object:
    return list(export.written())


EXTENT = (9).to_bytes(4, "big") + struct.pack(">II", PART, 1)


@pytest.mark.parametrize(("words", "asking"), [
    (b"HTTP/1.1 400 Bad Request\r\n", read),
    (b"NBDMAGICIHAVEOPT\0\0", read),
    (GREETING + told(7, 1), read),
    (GREETING + told(8, 1 << 31 | 1, b"no"), read),
    (GREETING + told(8, 1) + told(10, 1), read),
    (GREETING + told(8, 1) + told(10, 4, b"\0\0\0\1base:allocation") + told(10, 1), read),
    (GREETING + told(8, 3) * 5000, read),
    (CHOSEN + told(7, 1), read),
    (CHOSEN + shown(SIZE + 512), read),
    (AGREED + struct.pack(">IIQ", 0x67446698, 0, 1), read),
    (AGREED + answer(1, bytes(8 + PART)), read),
    (AGREED + answer(1, PART.to_bytes(8, "big") + bytes(2 * PART)), read),
    (AGREED + answer(1, PART.to_bytes(8, "big") + bytes(PART), handle=2), read),
    (AGREED + answer(1, PART.to_bytes(8, "big") + bytes(512)), read),
    (AGREED + answer(2, PART.to_bytes(8, "big") + b"\xff" * 4), read),
    (AGREED + answer(2, PART.to_bytes(8, "big") + bytes(4), last=False), read),
    (AGREED + answer(0, b"x"), read),
    (AGREED + answer(1 << 15 | 1, struct.pack(">IH", 5, 0)), read),
    (AGREED + answer(1 << 15 | 1), read),
    (AGREED + answer(1 << 15 | 1, struct.pack(">IH", 2**32 - 1, 500) + b"no"), read),
    (AGREED + answer(1 << 15 | 2, struct.pack(">IH", 28, 2) + b"no" + bytes(8)), read),
    (AGREED + answer(77), written),
    (AGREED + answer(0), written),
    (AGREED + answer(5, EXTENT[:4]), written),
    (AGREED + answer(5, EXTENT[:-1]), written),
    (AGREED + answer(5, bytes(4) + EXTENT[4:]), written),
    (AGREED + answer(5, EXTENT[:4] + bytes(8)), written),
    (AGREED + answer(5, EXTENT[:4] + struct.pack(">II", 1, 0)), written),
    (AGREED + answer(5, EXTENT, last=False) + answer(5, EXTENT), written),
    (AGREED + struct.pack(">IHHQI", 0x668E33EF, 1, 5, 1, 2**32 - 1), written),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: bytes, asking: Callable[[Export], object]) -> None:
    with saying(tmp_path, words), pytest.raises(Rejected) as refused, opened(tmp_path) as export:
        asking(export)
    assert refused.value.code == "backup-failed"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from((b"", GREETING, AGREED)), st.sampled_from((read, written)))
def test_noise_ends_in_an_error_that_is_foreseen(
    noise: bytes, begin: bytes, asking: Callable[[Export], object]
) -> None:
    with (
        TemporaryDirectory() as place,
        saying(Path(place), begin + noise),
        pytest.raises((Rejected, OSError)),
        opened(Path(place)) as export,
    ):
        asking(export)


def test_extents_end_with_the_disk_whatever_the_server_says(tmp_path: Path) -> None:
    extents = (9).to_bytes(4, "big") + struct.pack(">IIII", PART, 0, 2**32 - 512, 1)
    with saying(tmp_path, AGREED + answer(5, extents)), opened(tmp_path) as export:
        assert list(export.written()) == [Stretch(PART, SIZE - PART)]


def test_who_waits_for_a_server_that_hangs_can_be_called_off(tmp_path: Path) -> None:
    called_off = scope()
    threading.Timer(0.1, called_off.withdraw).start()
    with (
        saying(tmp_path, AGREED, then_hang=True),
        pytest.raises(Withdrawn),
        Export(tmp_path, SERVER, NAME, BITMAP, SIZE, called_off) as export,
    ):
        read(export)


def test_who_waits_for_a_server_that_hangs_waits_no_longer_than_he_may(tmp_path: Path) -> None:
    soon = OrderScope(time.monotonic, time.monotonic() + 0.2)
    with saying(tmp_path, GREETING, then_hang=True), pytest.raises(Expired):
        Export(tmp_path, SERVER, NAME, BITMAP, SIZE, soon)


def test_no_link_leads_to_the_export_of_another_guest(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other / SERVER))
        listener.listen()
        (ours / SERVER).symlink_to(other / SERVER)
        with pytest.raises(OSError, match=r"Connection refused|No such device|Socket"):
            opened(ours)


def test_a_socket_whose_whole_name_is_too_long_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with saying(tmp_path, b"x" * 18):
        (tmp_path / SERVER).rename(deep / SERVER)
        with pytest.raises(Rejected):
            opened(deep)
