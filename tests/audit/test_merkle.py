"""The tree: as RFC 6962 defines it, whatever its size, and no proof of what is not so."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audit import naive
from vmorch.audit.merkle import Node, Tree, consistency, cover, extends, includes, inclusion, leaf_hash, span_hash

VECTOR = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)

sizes = st.integers(0, 700)


def leaves(size: int) -> list[bytes]:
    return [sha256(str(number).encode()).digest() for number in range(size)]


def grown(size: int) -> Tree:
    tree = Tree()
    tree.extend(leaves(size))
    return tree


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_the_published_vectors_hold(size: int) -> None:
    tree = Tree()
    tree.extend(leaf_hash(bytes.fromhex(each)) for each in VECTOR[:size])
    assert tree.root().hex() == ROOTS[size]


@given(sizes)
def test_a_tree_has_the_root_that_the_standard_defines(size: int) -> None:
    assert grown(size).root() == naive.mth(leaves(size))


@given(sizes, sizes)
def test_a_tree_goes_on_from_its_edge_as_if_it_had_never_stopped(one: int, more: int) -> None:
    every = leaves(one + more)
    before = Tree()
    before.extend(every[:one])
    after = Tree(before.size, before.edge)
    after.extend(every[one:])
    assert (after.size, after.root()) == (one + more, naive.mth(every))


@given(sizes)
def test_the_nodes_worth_keeping_are_named_as_they_are_completed(size: int) -> None:
    completed = Tree().extend(leaves(size))
    assert [at for at, _ in completed] == [Node(8, index) for index in range(size // 256)]
    assert all(hash == naive.node(at, leaves(size)) for at, hash in completed)


@given(st.data(), sizes)
def test_perfect_subtrees_that_cover_a_span_build_the_same_tree(data: st.DataObject, size: int) -> None:
    every = leaves(size)
    low = data.draw(st.integers(0, size))
    high = data.draw(st.integers(low, size))
    tree = Tree()
    for at in cover(0, low):
        tree.push(naive.node(at, every), at.level)
    tree.extend(every[low:high])
    for at in cover(high, size):
        tree.push(naive.node(at, every), at.level)
    assert tree.root() == naive.mth(every)


def test_a_subtree_cannot_be_put_where_none_begins() -> None:
    with pytest.raises(ValueError, match="no subtree of level 1 begins at leaf 1"):
        grown(1).push(leaves(1)[0], 1)


@pytest.mark.parametrize(("size", "edge"), [(1, []), (2, leaves(2)), (-1, []), (1, [b"short"])])
def test_an_edge_that_no_tree_of_the_size_has_is_refused(size: int, edge: list[bytes]) -> None:
    with pytest.raises(ValueError, match="another edge"):
        Tree(size, edge)


@given(st.data(), st.integers(1, 300))
def test_every_leaf_is_proven_as_the_standard_says(data: st.DataObject, size: int) -> None:
    every = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    path = [span_hash(span, lambda at: naive.node(at, every)) for span in inclusion(index, size)]
    assert path == naive.path(index, every)
    assert includes(index, size, every[index], path, naive.mth(every))


@given(st.data(), st.integers(1, 300))
def test_no_other_leaf_place_or_path_is_proven(data: st.DataObject, size: int) -> None:
    every = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    path, root = naive.path(index, every), naive.mth(every)
    other = sha256(b"another").digest()
    assert not includes(index, size, other, path, root)
    assert not includes(index, size, every[index], [*path, other], root)
    assert not includes(index + size, size, every[index], path, root)
    assert not includes(-1, size, every[index], path, root)
    elsewhere = data.draw(st.integers(0, size - 1).filter(lambda at: at != index or size == 1))
    assert elsewhere == index or not includes(elsewhere, size, every[index], path, root)
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        assert not includes(index, size, every[index], [*path[:place], other, *path[place + 1 :]], root)
        assert not includes(index, size, every[index], path[:-1], root)


@given(st.data(), sizes)
def test_growth_is_proven_as_the_standard_says(data: st.DataObject, size: int) -> None:
    every = leaves(size)
    old = data.draw(st.integers(0, size))
    path = [span_hash(span, lambda at: naive.node(at, every)) for span in consistency(old, size)]
    assert path == ([] if old in (0, size) else naive.proof(old, every))
    assert extends(old, naive.mth(every[:old]), size, naive.mth(every), path)


@given(st.data(), st.integers(1, 300))
def test_a_fork_is_never_proven_to_be_growth(data: st.DataObject, size: int) -> None:
    every = leaves(size)
    old = data.draw(st.integers(1, size))
    at = data.draw(st.integers(0, old - 1))
    forked = [*every[:at], sha256(b"forged").digest(), *every[at + 1 :]]
    for path in (
        [] if old == size else naive.proof(old, every),
        [] if old == size else naive.proof(old, forked),
    ):
        assert not extends(old, naive.mth(every[:old]), size, naive.mth(forked), path)
    assert not extends(size, naive.mth(every), old - 1, naive.mth(every[: old - 1]), [])


def test_a_proof_of_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no leaf 3"):
        inclusion(3, 3)
    with pytest.raises(ValueError, match="does not grow from one of 4"):
        consistency(4, 3)
