"""Compare the layers of a VM's disks with what they are recorded to be, before anything touches them.

Everything that differs is told at once, with what to do about it; nothing is repaired on a guess. Three are asked that
can each know better than the others: the files, libvirt, and the QEMU of a guest that runs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import libvirt
from msgspec import Struct

from hostagent.commands._host import Host
from hostagent.commands._monitor import Asked, ask_used
from hostagent.commands._qemu import check_held
from hostagent.domain_xml import Told
from hostagent.layout import disk_file, draft_of, layer_of, opened
from hostagent.qcow2 import LayerHeader, is_qcow2, read_layer
from vmorch.core.errors import Rejected
from vmorch.core.hostcommands import LayerCommand
from vmorch.core.ids import VmId
from vmorch.core.layers import Merge, Stack, chain
from vmorch.core.spec import DiskSpec, ImageFormat

_MOST_TOLD = 40
"""How many differences are told; who has more has another problem."""


class Files:
    """Where the layers of one disk are."""

    def __init__(self, host: Host, vm: VmId, disk: DiskSpec) -> None:
        self._host, self._vm, self.disk = host, vm, disk
        home = disk.at(vm)
        self.directory, self.stem = host.layout.vm(disk.storage, home.vm), home.name

    def merged_back(self, found: str, wanted: str) -> str:
        """What to type so that a disk which is on `found` is on `wanted` again, with all that was written meanwhile."""
        if found == wanted:
            return "what lies below it was changed; bring that back from a backup"
        # without its base a commit would go down to the image, on which other VMs stand
        running = f"virsh blockcommit {self._vm} {self.disk.name} --active --pivot --wait --base {wanted}"
        return f"while it runs, {running}; while it is off, qemu-img commit -b {wanted} {found} and virsh edit"

    def of(self, layer: int) -> Path:
        """A layer's file."""
        return self.directory / disk_file(self.stem, layer)

    def stands_on(self, layer: int, below: int) -> bool:
        """Whether a layer is there and says that it stands on that one."""
        header = read_layer(self.of(layer))
        return header is not None and header.backing == str(self.of(below))

    def below(self, on: int | None) -> tuple[Path | None, ImageFormat]:
        """What a layer stands on, and its format; None if that is nothing."""
        if on is not None:
            return self.of(on), "qcow2"
        pin = self.disk.image
        return (None, "qcow2") if pin is None else (self._host.layout.image(self.disk.storage, pin), pin.format)


class Held(Struct, frozen=True):
    """The files that a VM's disks are on, topmost first, by the disks' names: as its configuration has it, and of a
    guest that runs, as libvirt and as QEMU have it."""

    active: bool = False
    configured: Mapping[str, tuple[str, ...]] = {}
    told: Mapping[str, tuple[str, ...]] = {}
    written: Mapping[str, tuple[str, ...]] = {}


def files_of(host: Host, vm: VmId, disk: DiskSpec) -> Files:
    """Where a disk's layers are."""
    return Files(host, vm, disk)


def stack_named(command: LayerCommand, disk: str) -> Stack:
    """The stack of a disk. Raises Rejected `bad-request`."""
    found = next((each for each in command.stacks if each.disk.name == disk), None)
    if found is None:
        raise Rejected("bad-request", f"nothing is said of the layers of {disk}")
    return found


def check(
    host: Host,
    command: LayerCommand,
    domain: Any | None,
    *,
    told: Told | None = None,
    asked: Asked | None = None,
    merging: Merge | None = None,
    merged: str = "",
    changing: bool = False,
    leaving: frozenset[tuple[str, int]] = frozenset(),
    meanwhile: Callable[[], None] = lambda: None,
) -> Held:
    """What the VM's disks are on, once the layers are as `command.stacks` says. Raises Rejected `chain-drift` or
    `guest-unheld`, libvirtError.

    `told` is the domain's XML, if it was just asked for, and `asked` a question to its QEMU that is under way. What was
    broken off may have gone some way: a merge (`merging`, of the disk `merged`; `changing`, if a guest was about to
    change over), or a removal of the layers that are `leaving` (by disk and number). If the files are as they should
    be, `meanwhile` is called while the QEMU of a guest that runs is asked; it must not touch a layer.
    """
    if not command.stacks:
        return Held()
    if domain is not None and told is None:
        told = Told(domain.XMLDesc(0))
    running = told if told is not None and told.active else None
    if running is None:
        check_held(command.vm)
    found = list(_by_hand(command, domain))
    configured = {} if domain is None else Told(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).chains
    if running is not None:
        # QEMU takes its time, in which the files can be looked at
        asked = asked or ask_used(domain, running.disks)
    found += _lying(host, command, merging, merged, leaving)
    held, at_work = Held(configured=configured), frozenset[str]()
    if running is not None and asked is not None:
        if not found:
            meanwhile()
        used = asked(running)
        written = {name: each.files for name, each in used.written.items()}
        held, at_work = Held(True, configured, running.chains, written), used.at_work
    found += _used(host, command, held, at_work, merging, merged, changing)
    if found:
        raise Rejected("chain-drift", "; ".join(found[:_MOST_TOLD]), facts={"blockers": found[:_MOST_TOLD]})
    return held


def check_topmost(vm: VmId, paths: Iterable[Path]) -> None:
    """Nothing stands on any of these files, so that a guest may write to them. Raises Rejected `chain-drift`."""
    found = [
        f"{', '.join(standing)} stands on {path}, so that {vm} must not write to it"
        for path in paths
        if (standing := standing_on(path))
    ]
    if found:
        raise Rejected("chain-drift", "; ".join(found), facts={"blockers": found})


def standing_on(path: Path) -> list[str]:
    """The files beside this one that stand on it."""
    if not path.parent.is_dir():
        return []
    return [each.name for each in sorted(path.parent.iterdir()) if each != path and _stands_on(each, path)]


def _stands_on(path: Path, below: Path) -> bool:
    if path.is_symlink() or not path.is_file() or not is_qcow2(path):
        return False
    header = _header(path)
    return isinstance(header, LayerHeader) and header.backing == str(below)


def _disks(
    host: Host, command: LayerCommand, merging: Merge | None, merged: str
) -> Iterator[tuple[Stack, Files, Merge | None]]:
    """Each disk's layers, where they are, and which of them were about to be merged."""
    for stack in command.stacks:
        yield stack, files_of(host, command.vm, stack.disk), merging if merged == stack.disk.name else None


def _by_hand(command: LayerCommand, domain: Any | None) -> Iterator[str]:
    if domain is not None and domain.snapshotNum():
        names = ", ".join(each.getName() for each in domain.listAllSnapshots())
        yield f"libvirt knows snapshots that were taken by hand: {names}; virsh snapshot-delete {command.vm} NAME"


def _lying(
    host: Host,
    command: LayerCommand,
    merging: Merge | None,
    merged: str,
    leaving: frozenset[tuple[str, int]],
) -> Iterator[str]:
    """What differs in the files."""
    for stack, files, this in _disks(host, command, merging, merged):
        going = frozenset(layer for name, layer in leaving if name == stack.disk.name)
        yield from _on_disk(files, stack, command.next, this, going)


def _used(
    host: Host,
    command: LayerCommand,
    held: Held,
    at_work: frozenset[str],
    merging: Merge | None,
    merged: str,
    changing: bool,
) -> Iterator[str]:
    """What differs in what the VM is said to be on."""
    for stack, files, this in _disks(host, command, merging, merged):
        off = frozenset({command.next}) if not held.active else frozenset()
        # by whom a domain that is off was put on the lower layer is not to be seen, so that we wrote it down
        gone_on = this if changing or held.active else None
        yield from _in_configuration(files, stack, held.configured, gone_on, off)
        yield from _in_use(files, stack, held, this)
        name = stack.disk.name
        if name in at_work and (this is None or not _is_active_merge(stack, this)):
            yield f"a block job that nobody recorded is at work on {name}: virsh blockjob {command.vm} {name}"


def _on_disk(
    files: Files, stack: Stack, next: int, merging: Merge | None, going: frozenset[int]
) -> Iterator[str]:
    tree, name = stack.tree, stack.disk.name
    for layer, on in sorted(tree.items()):
        header = _header(files.of(layer))
        if isinstance(header, str):
            yield header
        elif header is None:
            if layer not in going and (merging is None or layer != merging.top):
                yield f"layer {layer} of {name} is gone: bring {files.of(layer)} back from a backup"
        else:
            yield from _of_header(files, layer, on, header, merging)
    with opened(files.directory) as directory:
        there = () if directory is None else tuple(sorted(_names(files.directory)))
    ours = {str(files.of(layer)) for layer in tree}
    for file in there:
        path, number = files.directory / file, layer_of(files.stem, file)
        # a draft is what a killed agent left of a layer that it was about to make
        draft = file == draft_of(disk_file(files.stem, next))
        if number in tree or number in going or draft or not is_qcow2(path):
            continue
        header = _header(path)
        if isinstance(header, str) or header is None:
            continue
        if number == next and not header.empty:
            yield (
                f"layer {next} of {name} holds what was written after a snapshot that was never recorded: the last "
                f"writes before the host lost power (qemu-img commit {path} with the VM off brings them back), or "
                "older ones that were merged before; compare it with the layer below, then move it away"
            )
        elif number is not None and number != next:
            yield f"{path} is a layer of {name} that nobody recorded: move it away once nothing needs it"
        elif number is None and header.backing in ours:
            yield (
                f"{path} stands on a layer of {name}, which nobody recorded: a merge would damage it; "
                "move it away or delete it once nothing needs it"
            )


def _names(directory: Path) -> Iterator[str]:
    return (each.name for each in directory.iterdir() if each.is_file() and not each.is_symlink())


def _header(path: Path) -> LayerHeader | str | None:
    try:
        return read_layer(path)
    except Rejected as refusal:
        return refusal.reason


def _of_header(files: Files, layer: int, on: int | None, header: LayerHeader, merging: Merge | None) -> Iterator[str]:
    name, (below, format) = files.disk.name, files.below(on)
    wanted = ("", "") if below is None else (str(below), format)
    said = (header.backing, header.backing_format if header.backing else "")
    gone_on = merging is not None and on == merging.top and said == (str(files.of(merging.into)), "qcow2")
    if said != wanted and not gone_on:
        recorded = wanted[0] or "nothing"
        yield (
            f"layer {layer} of {name} stands on {said[0] or 'nothing'} and not on {recorded}: undo what was "
            f"done to it, or set it right with qemu-img rebase {files.of(layer)}"
        )
    if header.internal_snapshots:
        yield (
            f"layer {layer} of {name} holds {header.internal_snapshots} internal snapshots: "
            f"qemu-img snapshot -l {files.of(layer)}, then -d each of them with the VM off"
        )
    if header.corrupt:
        yield f"layer {layer} of {name} is marked as corrupt: qemu-img check {files.of(layer)}"


def _in_configuration(
    files: Files,
    stack: Stack,
    configured: Mapping[str, tuple[str, ...]],
    merging: Merge | None,
    unused: frozenset[int],
) -> Iterator[str]:
    # a domain that is off may still be on the empty layer of an attempt that came to nothing
    name, wanted = stack.disk.name, str(files.of(stack.disk.layer))
    if not configured:
        return
    found = configured.get(name, ("",))[0]
    left = any(found == str(files.of(layer)) for layer in unused)
    if found != wanted and not left and not _gone_on(files, stack, found, merging):
        yield (
            f"the VM's configuration has {name} on {found or 'nothing'} and not on {wanted}: "
            f"{files.merged_back(found, wanted)}"
        )


def _in_use(files: Files, stack: Stack, held: Held, merging: Merge | None) -> Iterator[str]:
    name = stack.disk.name
    if not held.active:
        return
    wanted = tuple(_recorded(files, stack))
    merged = tuple(each for each in wanted if merging is None or each != str(files.of(merging.top)))
    for who, found in (("libvirt", held.told.get(name, ())), ("QEMU", held.written.get(name, ()))):
        if found != wanted and (merging is None or found != merged):
            yield (
                f"{who} has the running guest's {name} on {_names_of(found)} and not on "
                f"{_names_of(wanted)}: {files.merged_back(found[0] if found else '', wanted[0])}"
            )
            return


def _names_of(paths: Iterable[str]) -> str:
    return " on ".join(Path(each).name for each in paths) or "nothing"


def _recorded(files: Files, stack: Stack) -> Iterator[str]:
    layers = chain(stack.tree, stack.disk.layer)
    yield from (str(files.of(layer)) for layer in layers)
    below, _ = files.below(stack.tree[layers[-1]])
    if below is not None:
        yield str(below)


def _gone_on(files: Files, stack: Stack, found: str, merging: Merge | None) -> bool:
    return merging is not None and stack.disk.layer == merging.top and found == str(files.of(merging.into))


def _is_active_merge(stack: Stack, merging: Merge) -> bool:
    return merging.top in chain(stack.tree, stack.disk.layer)
