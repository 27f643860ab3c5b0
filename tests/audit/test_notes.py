"""Signed notes: what others publish is read, what we write is read by others, and nothing else is taken for one."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from vmorch.audit.notes import BadNote, Checkpoint, read_checkpoint, read_key, read_note, write_note
from vmorch.audit.signing import LogSigner, signed_by

PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

SIGNER = LogSigner("vmorch/test/1", Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
ROOT = b"\x11" * 32


def test_the_published_note_is_verified_by_the_published_key() -> None:
    note, key = read_note(PUBLISHED), read_key(PUBLISHED_KEY)
    assert signed_by(note, key)
    assert write_note(note) == PUBLISHED
    assert key.text() == PUBLISHED_KEY


def test_a_checkpoint_is_three_lines_and_a_signature() -> None:
    text = SIGNER.sign(20852163, ROOT)
    body, _, signatures = text.partition("\n\n")
    assert body == "vmorch/test/1\n20852163\nERERERERERERERERERERERERERERERERERERERERERE="
    assert signatures.startswith("\u2014 vmorch/test/1 ")
    note = read_note(text)
    assert read_checkpoint(note) == Checkpoint("vmorch/test/1", 20852163, ROOT)
    assert signed_by(note, SIGNER.key)


def test_another_key_of_the_same_name_did_not_sign() -> None:
    other = LogSigner("vmorch/test/1", Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))
    assert not signed_by(read_note(SIGNER.sign(1, ROOT)), other.key)


@given(st.data())
def test_a_changed_byte_is_no_longer_signed(data: st.DataObject) -> None:
    text = SIGNER.sign(4711, ROOT)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(exclude_characters=text[at])) + text[at + 1 :]
    try:
        note = read_note(changed)
        assert not (signed_by(note, SIGNER.key) and read_checkpoint(note) == read_checkpoint(read_note(text)))
        assert not signed_by(note, SIGNER.key)
    except BadNote:
        pass


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        note = read_note(text)
    except BadNote:
        return
    assert write_note(note) == text


@pytest.mark.parametrize(
    "body",
    [
        "vmorch/test/1\n-1\nERERERERERERERERERERERERERERERERERERERERERE=\n",
        "vmorch/test/1\n01\nERERERERERERERERERERERERERERERERERERERERERE=\n",
        "vmorch/test/1\n1\nERER\n",
        "vmorch/test/1\n1\n",
        "\n1\nERERERERERERERERERERERERERERERERERERERERERE=\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(body: str) -> None:
    _, _, signatures = SIGNER.sign(1, ROOT).partition("\n\n")
    with pytest.raises(BadNote):
        read_checkpoint(read_note(f"{body}\n{signatures}"))


@pytest.mark.parametrize(
    "text", ["", "name", "name+00000000+AQ==", f"{PUBLISHED_KEY}A", PUBLISHED_KEY.replace("c7", "c8")]
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(BadNote):
        read_key(text)
