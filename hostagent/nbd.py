"""Read a disk that a QEMU exports, and where it was written to, over a Unix socket.

The part of the NBD protocol that this takes (NBD project, doc/proto.md): fixed newstyle negotiation, structured
replies, one metadata context, READ and BLOCK_STATUS. It is written here because libnbd's bindings belong to a
distribution's own Python and cannot be installed beside an agent. What the other end says is not believed: a guest may
have got the better of its QEMU.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from hostagent.hypervisor import Scope
from hostagent.layout import opened
from vmorch.core.errors import Rejected

CHUNK = 1024 * 1024
"""Bytes that are asked for at once."""
_IN_FLIGHT = 8
_LOOK_EVERY = 0.5
_MOST_OPTION = 4096
_MOST_TOLD = 2 * 1024 * 1024
"""Bytes of an answer without data: QEMU tells of 131,072 extents at once."""
_MOST_ASKED = 2**31

_GREETING = struct.Struct(">8s8sH")
_OPTION, _OPTION_ANSWER = struct.Struct(">8sII"), struct.Struct(">QIII")
_REQUEST, _MAGIC, _ANSWER = struct.Struct(">IHHQQI"), struct.Struct(">I"), struct.Struct(">HHQI")
_EXTENT, _OFFSET, _LENGTH = struct.Struct(">II"), struct.Struct(">Q"), struct.Struct(">I")

_HELLO, _HAVE_OPTION, _OF_OPTION, _OF_REQUEST, _ASK = (
    b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9, 0x668E33EF, 0x25609513,
)  # fmt: skip
_FIXED_NEWSTYLE = 1
_GO, _STRUCTURED, _SET_CONTEXT = 7, 8, 10
_ACKNOWLEDGED, _INFO, _CONTEXT, _REFUSED = 1, 3, 4, 1 << 31
_OF_EXPORT = b"\0\0"
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_LAST = 1
_NOTHING, _DATA, _HOLE, _STATUS, _ERROR = 0, 1, 2, 5, 1 << 15
_DIRTY = 1
_SECTOR = 512


class Stretch(NamedTuple):
    """A part of a disk, in bytes."""

    start: int
    length: int


class _Piece:
    """What was asked for, as far as it has come."""

    def __init__(self, stretch: Stretch) -> None:
        self.start, self.missing, self.over = stretch.start, stretch.length, False
        self.data = bytearray(stretch.length)


class Export(AbstractContextManager["Export"]):
    """A disk of `size` bytes, exported as `name` at the socket called `server` in `directory`, with the `bitmap` of
    what was written to it. Waits as long as the scope allows. Raises Rejected `backup-failed` for what makes no sense
    and for refusals, OSError, and what the scope raises."""

    def __init__(self, directory: Path, server: str, name: str, bitmap: str, size: int, scope: Scope) -> None:
        self._size, self._scope, self._handles = size, scope, count(1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect(directory, server)
            self._context = self._negotiate(name.encode(), f"qemu:dirty-bitmap:{bitmap}".encode())
        except BaseException:
            self._socket.close()
            raise

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._ask(_DISCONNECT, Stretch(0, 0))
        self._socket.close()

    def written(self) -> Iterator[Stretch]:
        """Every stretch that was written to, in order."""
        at, begun = 0, -1
        while at < self._size:
            for length, flags in self._status(Stretch(at, min(_MOST_ASKED, self._size - at))):
                if flags & _DIRTY and begun < 0:
                    begun = at
                elif not flags & _DIRTY and begun >= 0:
                    yield Stretch(begun, at - begun)
                    begun = -1
                at = min(at + length, self._size)
        if begun >= 0:
            yield Stretch(begun, self._size - begun)

    def read(self, stretches: Iterable[Stretch]) -> Iterator[tuple[int, bytearray]]:
        """What these stretches of the disk hold, in their order, in pieces of at most CHUNK bytes: from where on, and
        the bytes."""
        rest = (piece for stretch in stretches for piece in _pieces(stretch))
        asked: dict[int, _Piece] = {}
        while True:
            while len(asked) < _IN_FLIGHT and (next_one := next(rest, None)) is not None:
                asked[self._ask(_READ, next_one)] = _Piece(next_one)
            if not asked:
                return
            first = next(iter(asked))
            while not asked[first].over:
                self._take(asked)
            piece = asked.pop(first)
            yield piece.start, piece.data

    def _take(self, asked: dict[int, _Piece]) -> None:
        """What comes next of that which was asked for."""
        flags, kind, handle, length = self._answer()
        piece = asked.get(handle)
        if piece is None or piece.over:
            raise _nonsense("an answer to nothing")
        if kind in (_DATA, _HOLE):
            [start] = _OFFSET.unpack(self._receive(_OFFSET.size))
            size = length - _OFFSET.size if kind == _DATA else _LENGTH.unpack(self._receive(_LENGTH.size))[0]
            begin = start - piece.start
            if not (0 <= begin <= begin + size <= len(piece.data) and 0 < size <= piece.missing):
                raise _nonsense("data that was not asked for")
            if kind == _DATA:
                self._receive_into(memoryview(piece.data)[begin : begin + size])
            piece.missing -= size
        elif kind != _NOTHING or length:
            raise _nonsense(f"an answer of kind {kind}")
        piece.over = bool(flags & _LAST)
        if piece.over and piece.missing:
            raise _nonsense("less than was asked for")

    def _status(self, stretch: Stretch) -> list[tuple[int, int]]:
        """Lengths and flags of the extents from the beginning of the stretch on."""
        asked, found, last = self._ask(_BLOCK_STATUS, stretch), list[tuple[int, int]](), 0
        while not last:
            flags, kind, handle, length = self._answer()
            last = flags & _LAST
            if handle != asked or length > _MOST_TOLD:
                raise _nonsense("an answer to nothing")
            told = self._receive(length)
            if kind == _STATUS:
                context, extents = int.from_bytes(told[:4], "big"), told[4:]
                if context != self._context or len(extents) % _EXTENT.size or found:
                    raise _nonsense("extents that were not asked for")
                found = list(_EXTENT.iter_unpack(extents))
            elif kind != _NOTHING:
                raise _nonsense(f"an answer of kind {kind}")
        if not found or not all(length and length % _SECTOR == 0 for length, _ in found):
            raise _nonsense("extents of less than a sector")
        return found

    def _connect(self, directory: Path, server: str) -> None:
        # a link, which its QEMU could make, must not lead to another guest's, and a name may have 107 bytes only
        with opened(directory) as within:
            if within is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
            descriptor = os.open(server, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
        try:
            self._socket.settimeout(_LOOK_EVERY)
            self._socket.connect(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)

    def _negotiate(self, name: bytes, context: bytes) -> int:
        """Everything is agreed; the number that the context has."""
        hello, options, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (hello, options) != (_HELLO, _HAVE_OPTION) or not flags & _FIXED_NEWSTYLE:
            raise _nonsense("another greeting")
        self._socket.sendall(_LENGTH.pack(_FIXED_NEWSTYLE))
        named = _LENGTH.pack(len(name)) + name
        self._choose(_STRUCTURED, b"")
        told = self._choose(_SET_CONTEXT, named + _LENGTH.pack(1) + _LENGTH.pack(len(context)) + context)
        found = [data for kind, data in told if kind == _CONTEXT and data[4:] == context]
        if len(found) != 1:
            raise _nonsense("no bitmap")
        told = self._choose(_GO, named + b"\0\0")
        sizes = [data[2:10] for kind, data in told if kind == _INFO and data[:2] == _OF_EXPORT]
        if sizes != [self._size.to_bytes(8, "big")]:
            raise Rejected("backup-failed", f"QEMU exports a disk that has not {self._size} bytes")
        return int.from_bytes(found[0][:4], "big")

    def _choose(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """What is told about an option before it is acknowledged."""
        self._socket.sendall(_OPTION.pack(_HAVE_OPTION, option, len(data)) + data)
        told: list[tuple[int, bytes]] = []
        while True:
            magic, of, kind, length = _OPTION_ANSWER.unpack(self._receive(_OPTION_ANSWER.size))
            if magic != _OF_OPTION or of != option or length > _MOST_OPTION:
                raise _nonsense("an answer to no option")
            words = self._receive(length)
            if kind & _REFUSED:
                raise Rejected("backup-failed", f"QEMU refuses to export: {_text(words) or f'option {option}'}")
            if kind == _ACKNOWLEDGED:
                return told
            told.append((kind, words))
            if len(told) > _MOST_OPTION:
                raise _nonsense("answers without end")

    def _ask(self, what: int, stretch: Stretch) -> int:
        handle = next(self._handles)
        self._socket.sendall(_REQUEST.pack(_ASK, 0, what, handle, stretch.start, stretch.length))
        return handle

    def _answer(self) -> tuple[int, int, int, int]:
        """The head of an answer: flags, kind, to what, and how many bytes follow. Errors are raised."""
        [magic] = _MAGIC.unpack(self._receive(_MAGIC.size))
        if magic != _OF_REQUEST:
            raise _nonsense("an answer in another form")
        flags, kind, handle, length = _ANSWER.unpack(self._receive(_ANSWER.size))
        if kind & _ERROR:
            words = self._receive(min(length, _MOST_OPTION))
            code, text = int.from_bytes(words[:4], "big"), words[6 : 6 + int.from_bytes(words[4:6], "big")]
            raise Rejected("backup-failed", f"QEMU cannot read the disk: {_text(text) or f'error {code}'}")
        return flags, kind, handle, length

    def _receive(self, size: int) -> bytes:
        found = bytearray(size)
        self._receive_into(memoryview(found))
        return bytes(found)

    def _receive_into(self, rest: memoryview) -> None:
        while rest:
            self._scope.check()
            with suppress(TimeoutError):
                came = self._socket.recv_into(rest)
                if not came:
                    raise ConnectionResetError("QEMU closed the export")
                rest = rest[came:]


def _pieces(stretch: Stretch) -> Iterator[Stretch]:
    for begin in range(0, stretch.length, CHUNK):
        yield Stretch(stretch.start + begin, min(CHUNK, stretch.length - begin))


def _text(words: bytes) -> str:
    return words.decode(errors="replace").strip("\0 ")


def _nonsense(what: str) -> Rejected:
    return Rejected("backup-failed", f"QEMU's export says what makes no sense: {what}")
