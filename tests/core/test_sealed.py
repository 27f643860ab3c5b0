"""Sealed text as everybody but its reader sees it."""

from hypothesis import given
from hypothesis import strategies as st

from vmorch.core.ids import Stream
from vmorch.core.sealed import NONCE, TAG, Box, brief, briefly, read_sealed, size, subject_of, write_sealed

WEB = Stream("vm/0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d")
TEXT = write_sealed(Box(WEB, b"n" * NONCE, b"c" * (100 + TAG)))


@given(nonce=st.binary(min_size=NONCE, max_size=NONCE), ciphertext=st.binary(min_size=TAG, max_size=500))
def test_a_box_comes_back_from_its_text(nonce: bytes, ciphertext: bytes) -> None:
    box = Box(WEB, nonce, ciphertext)
    text = write_sealed(box)
    assert text.startswith(f"sealed:1:{WEB}:")
    assert read_sealed(text) == box
    assert subject_of(text) == WEB
    assert size(text) == len(ciphertext) - TAG


@given(st.text())
def test_what_is_not_sealed_is_taken_for_what_it_is(text: str) -> None:
    assert read_sealed(text) is None
    assert size(text) == len(text.encode())
    assert briefly(text) == text


def test_what_only_looks_sealed_is_not() -> None:
    for text in ("sealed:1:vm/web", "sealed:1:vm/web:@@", "sealed:1:vm/web:bm8=", f"sealed:2:{WEB}:{'A' * 80}"):
        assert read_sealed(text) is None


def test_sealed_text_is_told_by_its_size_wherever_it_stands() -> None:
    data = {"spec": {"seed": {"user_data": TEXT, "hostname": "web"}}, "steps": [TEXT, 1, None]}
    told = "(100 bytes, sealed)"
    assert briefly(data) == {"spec": {"seed": {"user_data": told, "hostname": "web"}}, "steps": [told, 1, None]}
    assert (brief(TEXT), brief("secret"), brief("")) == (told, "(6 bytes)", "")
