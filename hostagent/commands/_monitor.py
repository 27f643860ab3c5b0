"""Ask QEMU itself which files its guest's disks are on, and take back what a libvirt that died there left half done.

libvirt tells what it believes. If its daemon is killed between QEMU's change and its own record of it, the two differ
for ever, and whatever libvirt does next is done to the wrong file. Of a guest that runs QEMU's own word is the truth.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import libvirt
import libvirt_qemu
import msgspec
import structlog

from hostagent.commands._aside import Call
from hostagent.domain_xml import Told
from vmorch.core.errors import Rejected

ANSWER_SECONDS = 20.0
UNDO_SECONDS = 300.0
_LOOK_EVERY = 0.02
_OPTIONS = "json:"
_PERIPHERAL = "/machine/peripheral/"

_log = structlog.get_logger(__name__)


class Image(msgspec.Struct):
    """An image as QEMU has it open, with the one below it."""

    filename: str
    below: "Image | None" = msgspec.field(name="backing-image", default=None)


class _Inserted(msgspec.Struct):
    node: str = msgspec.field(name="node-name")
    image: Image


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class _Blocks(msgspec.Struct):
    blocks: list[_Block] = msgspec.field(name="return")


class Bitmap(msgspec.Struct):
    """Where a layer was written to since something that happened, as its QEMU notes it."""

    name: str = ""
    recording: bool = False
    persistent: bool = False
    inconsistent: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing was written that it does not tell."""
        return self.recording and self.persistent and not self.inconsistent


class _Protocol(msgspec.Struct, frozen=True):
    filename: str = ""


class _Options(msgspec.Struct):
    file: _Protocol = _Protocol()


class _Node(msgspec.Struct):
    node: str = msgspec.field(name="node-name", default="")
    file: str = ""
    driver: str = msgspec.field(name="drv", default="")
    bitmaps: list[Bitmap] = msgspec.field(name="dirty-bitmaps", default_factory=list)

    @property
    def path(self) -> str:
        """The file that it is on. One that was opened apart from what it stands on tells it among its options."""
        if not self.file.startswith(_OPTIONS):
            return self.file
        try:
            return msgspec.json.decode(self.file.removeprefix(_OPTIONS), type=_Options).file.filename
        except msgspec.MsgspecError:
            return ""


class _Nodes(msgspec.Struct):
    nodes: list[_Node] = msgspec.field(name="return")


class _Job(msgspec.Struct):
    id: str
    status: str
    type: str = ""


class _Jobs(msgspec.Struct):
    jobs: list[_Job] = msgspec.field(name="return")


class _Deleted(msgspec.Struct):
    device: str = ""


class _Refusal(msgspec.Struct):
    words: str = msgspec.field(name="desc", default="no reason was given")


class _Accepted(msgspec.Struct):
    error: _Refusal | None = None


class Written(msgspec.Struct, frozen=True):
    """What a guest's disk is on: the files, topmost first, and QEMU's name for the topmost one."""

    files: tuple[str, ...]
    node: str


class Used(msgspec.Struct, frozen=True):
    """What a guest's disks are on, by their names, and on which of them libvirt has a block job."""

    written: dict[str, Written]
    at_work: frozenset[str]


def written_by(domain: Any) -> dict[str, Written]:
    """What each disk of an active domain is on, by its name. Raises Rejected `busy` if QEMU does not answer."""
    return ask_used(domain, ())(Told(domain.XMLDesc(0))).written


Asked = Callable[[Told], Used]
"""What tells the answer to a question about a domain, by what libvirt tells of it. Raises as `written_by` does, and
libvirtError if the domain is off."""


def ask_used(domain: Any, disks: Iterable[str]) -> Asked:
    """Ask what each disk of a domain is on and whether libvirt has a block job on one of these, and go on."""

    def ask() -> tuple[str, frozenset[str]]:
        said = _order(domain, "query-block")
        return said, frozenset(name for name in disks if domain.blockJobInfo(name, 0))

    call = Call(ask)

    def used(told: Told) -> Used:
        said, at_work = outcome(call)
        names, found = {alias: name for name, alias in told.aliases.items() if alias}, dict[str, Written]()
        for block in _understood(said, "query-block", _Blocks).blocks:
            # such as /machine/peripheral/virtio-disk0/virtio-backend
            name = next((names[part] for part in block.qdev.split("/") if part in names), None)
            if name is not None and block.inserted is not None:
                found[name] = Written(tuple(_files(block.inserted.image)), block.inserted.node)
        return Used(found, at_work)

    return used


def bitmaps_of(domain: Any) -> dict[str, tuple[tuple[Bitmap, ...], ...]]:
    """What is noted of each disk of an active domain: the bitmaps of each of its layers, topmost first. Raises Rejected
    `busy`, libvirtError."""
    nodes = _ask(domain, "query-named-block-nodes", _Nodes, flat=True).nodes
    noted = {each.file: tuple(each.bitmaps) for each in nodes if each.driver == "qcow2"}
    return {disk: tuple(noted.get(file, ()) for file in found.files) for disk, found in written_by(domain).items()}


def note_writes(domain: Any, node: str, name: str, granularity: int) -> None:
    """QEMU notes from now on where the guest writes to that node, under that name, in blocks of so many bytes, also
    when the guest was off in between. Raises Rejected `busy` and `libvirt-refused`, libvirtError."""
    arguments = {"node": node, "name": name, "granularity": granularity, "persistent": True}
    refused = _ask(domain, "block-dirty-bitmap-add", _Accepted, **arguments).error
    if refused is not None:
        raise Rejected("libvirt-refused", f"QEMU does not note where the guest writes: {refused.words}")


def copies_under_way(domain: Any) -> int:
    """Of how many disks QEMU keeps what they held when their backup began. Raises Rejected `busy`, libvirtError."""
    jobs = _ask(domain, "query-jobs", _Jobs).jobs
    # QEMU pauses a job for a moment by itself
    return sum(each.type == "backup" and each.status in ("running", "paused") for each in jobs)


def take_back(domain: Any, disk: str, top: Path, below: Path) -> bool:
    """QEMU's guest writes to `below` again, which libvirt believes it does, and what it wrote to `top` is there.
    Whether it did write to `top`.

    Only for a `top` that libvirt does not know of. Raises Rejected `busy`, libvirtError.
    """
    written = written_by(domain).get(disk)
    nodes = _ask(domain, "query-named-block-nodes", _Nodes, flat=True).nodes
    lower = next((each.node for each in nodes if each.path == str(below) and each.driver == "qcow2"), "")
    switched = written is not None and written.files[:2] == (str(top), str(below)) and bool(lower)
    if switched:
        assert written is not None
        _log.warning("libvirt died while it took a snapshot; taking it back", disk=disk, layer=top.name)
        job = f"vmorch-{disk}"
        arguments = {"job-id": job, "device": written.node, "base-node": lower, "auto-dismiss": True}
        _ask(domain, "block-commit", msgspec.Raw, **arguments)
        ends = time.monotonic() + UNDO_SECONDS
        while (status := _status(domain, job)) is not None:
            if status == "ready":
                _ask(domain, "job-complete", msgspec.Raw, id=job)
            if time.monotonic() >= ends:
                raise Rejected("busy", f"QEMU does not end the merge of {top.name}")
            time.sleep(_LOOK_EVERY)
        if written_by(domain)[disk].files[0] == str(top):
            raise Rejected("libvirt-refused", f"QEMU could not merge {top.name} back")
    let_go(domain, top)
    return switched


def let_go(domain: Any, file: Path) -> None:
    """QEMU does not hold the file open, if no disk is on it."""
    if any(str(file) in written.files for written in written_by(domain).values()):
        return
    nodes = _ask(domain, "query-named-block-nodes", _Nodes, flat=True).nodes
    # the format stands on the protocol, so it goes first
    for node in sorted((each for each in nodes if each.path == str(file)), key=lambda each: each.driver != "qcow2"):
        _ask(domain, "blockdev-del", msgspec.Raw, **{"node-name": node.node})


def is_forgotten(domain: Any, file: Path) -> bool:
    """Whether an active domain has the file open though libvirt names no disk on it. Raises Rejected `busy`,
    libvirtError."""
    return str(file) not in Told(domain.XMLDesc(0)).disks.values() and has_open(domain, file)


def has_open(domain: Any, file: Path) -> bool:
    """Whether an active domain's QEMU has the file open. Raises Rejected `busy`, libvirtError."""
    return any(each.path == str(file) for each in _ask(domain, "query-named-block-nodes", _Nodes, flat=True).nodes)


def has_job(domain: Any, disk: str) -> bool:
    """Whether libvirt has a block job on the disk of an active domain. Raises Rejected `busy`, libvirtError."""
    return bool(outcome(Call(lambda: domain.blockJobInfo(disk, 0))))


def take_out(domain: Any, file: Path, within: float, check: Callable[[], None]) -> None:
    """The guest has no disk on a file that libvirt forgot, and QEMU does not hold it open. `check` is called while the
    guest is waited for, at most `within` seconds.

    Only for a file that libvirt does not know of. Raises Rejected `device-held`, `busy`, libvirtError.
    """
    device = _device_on(domain, file)
    if device:
        _log.warning("libvirt died while it plugged a disk in; taking it out", device=device, file=str(file))
        with _deleted(domain) as told:
            _ask(domain, "device_del", msgspec.Raw, id=device)
            ends = time.monotonic() + within
            # what libvirt was not told of yet it would take for the end of the next device of that name
            while told.empty() or told.get() != device:
                if time.monotonic() >= ends:
                    raise Rejected("device-held", f"the guest did not let go of {file.name} within {within:g} s")
                check()
                time.sleep(_LOOK_EVERY)
    let_go(domain, file)


@contextmanager
def _deleted(domain: Any) -> Iterator["SimpleQueue[str]"]:
    """The devices of which QEMU says inside the block that they are gone, after libvirt was told the same."""
    told: SimpleQueue[str] = SimpleQueue()
    connection = domain.connect()
    registered = libvirt_qemu.qemuMonitorEventRegister(connection, domain, "DEVICE_DELETED", _on_deleted, told)
    try:
        yield told
    finally:
        with suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorEventDeregister(connection, registered)


def _on_deleted(*said: Any) -> None:
    details, told = said[-2:]
    with suppress(msgspec.MsgspecError):
        told.put(msgspec.json.decode(details, type=_Deleted).device)


def _device_on(domain: Any, file: Path) -> str:
    """QEMU's name for the device whose disk is on the file; empty if there is none."""
    blocks: list[_Block] = _ask(domain, "query-block", _Blocks).blocks
    for block in blocks:
        if block.inserted is not None and block.inserted.image.filename == str(file):
            # such as /machine/peripheral/virtio-disk0/virtio-backend
            return block.qdev.removeprefix(_PERIPHERAL).split("/")[0]
    return ""


def _status(domain: Any, job: str) -> str | None:
    return next((each.status for each in _ask(domain, "query-jobs", _Jobs).jobs if each.id == job), None)


def _files(image: Image | None) -> Iterator[str]:
    while image is not None:
        yield image.filename
        image = image.below


def _ask(domain: Any, command: str, shape: Any, **arguments: Any) -> Any:
    """QEMU's answer. libvirt serves one question of a domain at a time, so a QEMU that hangs could hang the asker."""
    said = outcome(Call(lambda: _order(domain, command, **arguments)))
    return None if shape is msgspec.Raw else _understood(said, command, shape)


def _order(domain: Any, command: str, **arguments: Any) -> str:
    order = {"execute": command} | ({"arguments": arguments} if arguments else {})
    return str(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(order), 0))


def _understood(said: str, command: str, shape: Any) -> Any:
    try:
        return msgspec.json.decode(said, type=shape)
    except msgspec.MsgspecError as error:
        raise Rejected("libvirt-refused", f"QEMU's answer to {command} is not understood: {error}") from error


def outcome(call: Call) -> Any:
    """What a call to libvirt that needs QEMU gave. Raises Rejected `busy` if it takes too long, libvirtError."""
    if not call.over.wait(ANSWER_SECONDS):
        raise Rejected("busy", "QEMU does not answer")
    if call.error is not None:
        raise call.error
    return call.value
