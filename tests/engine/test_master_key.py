"""The master key: a private file, agreed upon by all servers, without which nothing is opened."""

import itertools
import stat
from pathlib import Path

import pytest

from vmorch.bus.keys import BadKey
from vmorch.core.errors import Rejected
from vmorch.core.ids import Stream
from vmorch.engine.masterkey import create_master_key, path_of, read_master_key
from vmorch.engine.subject_keys import SubjectKeys
from vmorch.log.keyring import MemoryKeyring

WEB = Stream("vm/web")
_numbers = itertools.count(1)


def keys_of(directory: Path, keyring: MemoryKeyring) -> SubjectKeys:
    return SubjectKeys(keyring, read_master_key(directory), lambda size: next(_numbers).to_bytes(size, "big"))


def server(directory: Path) -> Path:
    create_master_key(directory)
    return directory


def test_it_is_a_file_that_only_its_owner_reads_and_that_is_made_once(tmp_path: Path) -> None:
    first = read_master_key(server(tmp_path / "keys")).name
    assert stat.S_IMODE(path_of(tmp_path / "keys").stat().st_mode) == 0o600
    assert read_master_key(server(tmp_path / "keys")).name == first
    path_of(tmp_path / "keys").chmod(0o640)
    with pytest.raises(BadKey, match="0600"):
        read_master_key(tmp_path / "keys")


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = path_of(server(tmp_path))
    path.write_text(text)
    with pytest.raises(BadKey):
        read_master_key(tmp_path)


def test_a_server_without_the_file_is_told_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as refusal:
        read_master_key(tmp_path)
    assert refusal.value.code == "other-master-key"
    assert "from another server" in refusal.value.hint


@pytest.mark.anyio
async def test_two_servers_agree_on_the_key_of_the_first(tmp_path: Path) -> None:
    keyring = MemoryKeyring()
    one, two = (keys_of(server(tmp_path / name), keyring) for name in ("one", "two"))
    await one.agree()
    with pytest.raises(Rejected) as refusal:
        await two.agree()
    assert refusal.value.code == "other-master-key"
    same = keys_of(tmp_path / "one", keyring)
    await same.agree()
    assert await same.open(await one.seal(WEB, "secret")) == "secret"


@pytest.mark.anyio
async def test_after_a_lost_key_a_new_one_seals_and_what_was_sealed_before_stays_shut(tmp_path: Path) -> None:
    keyring = MemoryKeyring()
    lost, new = (keys_of(server(tmp_path / name), keyring) for name in ("lost", "new"))
    await lost.agree()
    before = await lost.seal(WEB, "secret")
    await new.agree(instead=True)
    await new.agree()
    after = await new.seal(Stream("vm/shop"), "another")
    assert await new.reveal([before, after, ""]) == {before: "(other-master-key)", after: "another", "": ""}
    assert await keyring.erase(WEB)


@pytest.mark.anyio
async def test_equal_texts_look_different_and_each_is_opened(tmp_path: Path) -> None:
    keys = keys_of(server(tmp_path), MemoryKeyring())
    texts = [await keys.seal(WEB, "secret") for _ in range(3)]
    assert len(set(texts)) == 3
    assert [await keys.open(text) for text in texts] == ["secret"] * 3
    assert await keys.open("in the clear") == "in the clear"
    damaged = texts[0][:-4] + "AAA="
    with pytest.raises(Rejected) as refusal:
        await keys.open(damaged)
    assert refusal.value.code == "key-damaged"
