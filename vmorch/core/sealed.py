"""Sealed text: what the log holds of a person, or for a guest alone, in a form that only the subject's key opens.

It is `sealed:1:SUBJECT:BASE64`; the bytes are the nonce, and AES-256-GCM's ciphertext with its tag, bound to the
subject. States and rows pass it on as it is. Must not seal or open anything: keys are an effect.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Any, NewType

from vmorch.core.ids import Stream
from vmorch.core.value import Value

Sealed = NewType("Sealed", str)
"""Sealed text, or nothing."""

NONCE = 12
TAG = 16
_MARK = "sealed:1:"


class Box(Value, frozen=True):
    """Sealed text, taken apart."""

    subject: Stream
    nonce: bytes
    ciphertext: bytes


def write_sealed(box: Box) -> Sealed:
    """The text of a box."""
    return Sealed(f"{_MARK}{box.subject}:{b64encode(box.nonce + box.ciphertext).decode()}")


def read_sealed(text: str) -> Box | None:
    """The box in a text; None if it is not sealed."""
    if not text.startswith(_MARK):
        return None
    subject, _, content = text.removeprefix(_MARK).partition(":")
    try:
        raw = b64decode(content, validate=True)
    except (NotBase64, ValueError):
        return None
    return Box(Stream(subject), raw[:NONCE], raw[NONCE:]) if len(raw) >= NONCE + TAG else None


def subject_of(text: str) -> Stream | None:
    """Whose key opens the text; None if it is not sealed. Unlike `read_sealed` it looks at no more than that."""
    if not text.startswith(_MARK):
        return None
    return Stream(text[len(_MARK) : text.find(":", len(_MARK))])


def size(text: str) -> int:
    """How many bytes the text has, or had before it was sealed."""
    box = read_sealed(text)
    return len(text.encode()) if box is None else len(box.ciphertext) - TAG


def brief(text: str) -> str:
    """What people are shown in place of a text that is not for them."""
    if not text:
        return ""
    return f"({size(text)} bytes)" if subject_of(text) is None else f"({size(text)} bytes, sealed)"


def briefly(data: Any) -> Any:
    """Plain data in which every sealed text is told in brief."""
    if isinstance(data, dict):
        return {key: briefly(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [briefly(each) for each in data]
    return data if not isinstance(data, str) or read_sealed(data) is None else brief(data)
