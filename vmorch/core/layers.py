"""The layers of a disk: a tree of files, each holding what was written since the one below it.

A snapshot keeps the layer that was written to when it was taken; from then on the guest writes to a new one above it.
Going back to a snapshot begins a new layer above the kept one, so that trees grow branches. Pure arithmetic on numbers:
must not know where files are, nor what a snapshot is beyond the layers that it keeps.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from vmorch.core.spec import DiskSpec, LayerNumber
from vmorch.core.value import Value

Tree = Mapping[int, int | None]
"""Each layer with the one that it stands on; None: on the disk's image, or on nothing."""


class Layer(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One layer as it is told to a host."""

    number: LayerNumber
    on: LayerNumber | None = None


class Stack(Value, frozen=True, kw_only=True):
    """A disk as its host must find it: these layers and no others, `disk.layer` written to."""

    disk: DiskSpec
    layers: tuple[Layer, ...]

    @property
    def tree(self) -> dict[int, int | None]:
        """The layers as a tree."""
        return {each.number: each.on for each in self.layers}


class Merge(Value, frozen=True):
    """What layer `top` holds goes into `into`, the one below it, which then stands in its place."""

    top: int
    into: int


class Drop(Value, frozen=True):
    """Layer `layer`, on which nothing stands, goes with all that it holds."""

    layer: int


Reduction = Merge | Drop


def stack(disk: DiskSpec, tree: Tree) -> Stack:
    """A disk with its layers, lower ones first."""
    return Stack(disk=disk, layers=tuple(Layer(number=number, on=tree[number]) for number in sorted(tree)))


def above(tree: Tree, layer: int) -> list[int]:
    """The layers that stand on this one, in order."""
    return sorted(number for number, on in tree.items() if on == layer)


def chain(tree: Tree, layer: int) -> list[int]:
    """This layer and all below it, topmost first."""
    found = [layer]
    while (below := tree[found[-1]]) is not None:
        found.append(below)
    return found


def grown(tree: Tree, new: int, on: int) -> Tree:
    """The tree with a new layer on an old one."""
    return {**tree, new: on}


def reduced(tree: Tree, reduction: Reduction) -> Tree:
    """The tree after a reduction."""
    match reduction:
        case Drop(layer=layer):
            return {number: on for number, on in tree.items() if number != layer}
        case Merge(top=top, into=into):
            return {number: into if on == top else on for number, on in tree.items() if number != top}


def stands_for(reduction: Reduction, layer: int) -> int:
    """Which layer holds, after a reduction, what this one held before."""
    return reduction.into if isinstance(reduction, Merge) and reduction.top == layer else layer


def spare(tree: Tree, kept: Collection[int]) -> Iterator[Reduction]:
    """Everything that can be reduced, in order, when only `kept` layers must go on to hold what they hold.

    A layer that is not kept goes if nothing stands on it, and takes the place of the one above if that is the only
    one. With several above it stays, because each of them needs it.
    """
    left, held = dict(tree), set(kept)
    while (found := _next(left, held)) is not None:
        yield found
        held = {stands_for(found, layer) for layer in held}
        left = dict(reduced(left, found))


def _next(tree: Tree, kept: Collection[int]) -> Reduction | None:
    free = [layer for layer in sorted(tree) if layer not in kept]
    bare = [layer for layer in free if not above(tree, layer)]
    if bare:
        return Drop(bare[-1])
    # lower ones first: what was merged down is not copied again
    single = [layer for layer in free if len(above(tree, layer)) == 1]
    return Merge(above(tree, single[0])[0], single[0]) if single else None


Quality = Literal["crash-consistent", "frozen", "memory", "off"]
"""What a snapshot's disks are worth: as after a power cut; with the guest's file systems at rest; together with the
guest's memory, so that it goes on where it was; or of a guest that was off."""
