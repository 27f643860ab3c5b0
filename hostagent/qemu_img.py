"""Call qemu-img for what it is needed for: making a disk, and what is done to layers of one that no guest uses.

The format of every file is always told, so that no program ever guesses it from what a guest wrote. Must not be
pointed at an image whose header our own reader has not accepted. What it may take is bounded.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from hostagent.hypervisor import Scope
from vmorch.core.errors import Rejected
from vmorch.core.spec import ImageFormat

SECONDS = 60
CPU_SECONDS = 30
MEMORY_BYTES = 2 * 1024**3

WINDOW = 16 * 1024**3
"""How many bytes of a disk are asked about at once, if that can be answered briefly."""
_LEAST_WINDOW = 1024**2

_LOOK_EVERY = 0.2
_MOST_SAID = 64 * 1024**2
_NO_SPACE = "No space left on device"

File = tuple[Path, ImageFormat]


class Extent(Struct, frozen=True):
    """A stretch of a disk, in bytes: which file of the chain says what it holds, and where in that file it is. Without
    `data` it holds zeros; it is not `present` where no file says anything."""

    start: int
    length: int
    depth: int
    present: bool
    data: bool
    offset: int | None = None


def create_overlay(path: Path, size: int, base: Path, base_format: ImageFormat) -> None:
    """A new qcow2 file of `size` virtual bytes over `base`. Raises Rejected with qemu-img's own words."""
    _run(["create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(path), str(size)])


def create_empty(path: Path, size: int) -> None:
    """A new qcow2 file of `size` virtual bytes that holds nothing. Raises Rejected with qemu-img's own words."""
    _run(["create", "-q", "-f", "qcow2", str(path), str(size)])


def commit(top: Path, into: Path, scope: Scope) -> None:
    """What `top` holds is in `into`, somewhere below it; `top` is as it was. Safe to break off and repeat.
    Raises Rejected, Withdrawn, Expired."""
    _run(["commit", "-q", "-d", "-f", "qcow2", "-b", str(into), str(top)], scope)


def stand_on(layer: Path, below: Path, below_format: ImageFormat) -> None:
    """`layer` names `below` as what it stands on. Nothing is copied, so both must hold the same to whoever reads."""
    _run(["rebase", "-q", "-u", "-f", "qcow2", "-F", below_format, "-b", str(below), str(layer)])


def flatten(source: Sequence[File], into: Path, scope: Scope) -> None:
    """`into` is a new qcow2 file that holds what is read through the chain `source`, topmost file first; nothing that
    their headers name is opened. Raises Rejected, Withdrawn, Expired."""
    _run(["convert", "-q", "-O", "qcow2", _explicit(source), str(into)], scope)


def extents(chain: Sequence[File], size: int, scope: Scope) -> Iterator[Extent]:
    """Every stretch of a disk of `size` bytes, in order, as read through the chain, topmost file first.
    Raises Rejected, Withdrawn, Expired."""
    start, most = 0, WINDOW
    while start < size:
        length = min(most, size - start)
        window = [f"--start-offset={start}", f"--max-length={length}"]
        said = _run(["map", "--output=json", *window, _explicit(chain)], scope, most=_MOST_SAID)
        if len(said) >= _MOST_SAID - 1 and length > _LEAST_WINDOW:
            # a badly fragmented disk has many of them
            most = length // 2
            continue
        try:
            yield from msgspec.json.decode(said, type=list[Extent])
        except msgspec.MsgspecError as error:
            raise Rejected("qemu-img-failed", f"the map of {chain[0][0].name} is not understood: {error}") from error
        start += length


def resize(file: Path, size: int) -> None:
    """The qcow2 file, which nobody uses now, has `size` virtual bytes; never fewer than before. Raises Rejected."""
    _run(["resize", "-q", "-f", "qcow2", str(file), str(size)])


def note_writes(layer: Path, name: str, granularity: int) -> None:
    """Whoever writes to the layer from now on notes where, under that name, in blocks of so many bytes. Nobody uses it
    now."""
    _run(["bitmap", "--add", "-g", str(granularity), "-f", "qcow2", str(layer), name])


def forget_writes(layer: Path, name: str) -> None:
    """Nothing is noted under that name any more. Nobody uses the layer now."""
    _run(["bitmap", "--remove", "-f", "qcow2", str(layer), name])


def noted(layer: Path) -> list[str]:
    """The names under which writes to the layer are noted."""
    said = _run(["info", "--output=json", "-f", "qcow2", str(layer)], most=_MOST_SAID)
    try:
        found = msgspec.json.decode(said, type=_Info)
    except msgspec.MsgspecError as error:
        raise Rejected("qemu-img-failed", f"what {layer.name} notes is not understood: {error}") from error
    return [each.name for each in found.specific.data.bitmaps]


class _Bitmap(Struct):
    name: str


class _Qcow2(Struct):
    bitmaps: list[_Bitmap] = []


class _Specific(Struct):
    data: _Qcow2


class _Info(Struct):
    specific: _Specific = field(name="format-specific")


def _explicit(chain: Sequence[File]) -> str:
    """The chain as qemu-img understands it without looking into a header for what is below."""
    found: dict[str, object] | None = None
    for path, format in reversed(chain):
        node: dict[str, object] = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
        found = node if format == "raw" else {**node, "backing": found}
    return "json:" + msgspec.json.encode(found).decode()


def _run(arguments: list[str], scope: Scope | None = None, *, most: int = 4096) -> str:
    """What it said, the first `most` bytes. Within a scope it may take as long as that; else its time is short. It ends
    with the agent: one that goes on alone would be in the way of whoever repeats it."""
    # limits by prlimit: a function run between fork and exec could hang in a process with threads
    limits = [f"--as={MEMORY_BYTES}", "--core=0"] + ([f"--cpu={CPU_SECONDS}"] if scope is None else [])
    ends = time.monotonic() + SECONDS
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "prlimit", *limits, "qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        ) as program,
    ):
        try:
            while (status := _ended(program)) is None:
                if scope is not None:
                    scope.check()
                elif time.monotonic() >= ends:
                    raise Rejected("qemu-img-failed", f"qemu-img {arguments[0]} took more than {SECONDS} s")
        except BaseException:
            program.kill()
            raise
        said.seek(0)
        words = said.read(most).decode(errors="replace").strip()
    if status:
        code = "disk-full" if _NO_SPACE in words else "qemu-img-failed"
        raise Rejected(code, words[:4096].removeprefix("qemu-img: ") or f"exit status {status}")
    return words


def _ended(program: "subprocess.Popen[bytes]") -> int | None:
    try:
        return program.wait(_LOOK_EVERY)
    except subprocess.TimeoutExpired:
        return None
