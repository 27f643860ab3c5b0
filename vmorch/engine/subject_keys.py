"""Text sealed for a subject and opened again, with a key for each that can be destroyed.

Keys are looked up each time and never remembered: what is erased is erased for every server at once. Must not decide
what is sealed, nor who may read it.
"""

from collections.abc import Callable, Collection, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmorch.core.errors import Rejected
from vmorch.core.ids import Stream
from vmorch.core.sealed import NONCE, Box, Sealed, read_sealed, write_sealed
from vmorch.engine.masterkey import KEY, MasterKey, missing
from vmorch.log.keyring import Kept, Keyring

_NEVER = Kept(None, "")
"""What is kept for a subject that never had a key."""


class SubjectKeys:
    """Seals and opens for one cluster. `random` gives as many unforeseeable bytes as it is asked for."""

    def __init__(self, keyring: Keyring, master: MasterKey, random: Callable[[int], bytes]) -> None:
        self.keyring = keyring
        self._master = master
        self._random = random

    async def agree(self, *, instead: bool = False) -> None:
        """See that the master key here is the cluster's: the first one that wraps is, another one only `instead` of it.

        Raises Rejected `other-master-key`, LogUnavailable.
        """
        masters = await self.keyring.masters()
        if not masters or instead:
            # from now on a server with another one finds a key that it cannot unwrap
            await self.seal(Stream(f"cluster/{self._master.name}"), "")
        elif self._master.name not in masters:
            raise missing("this server's master key is another than the cluster's")

    async def seal(self, subject: Stream, text: str) -> Sealed:
        """The text, sealed with the subject's key, which is made at the first call.

        Raises Rejected `erased`, `other-master-key`, `key-damaged`, LogUnavailable.
        """
        wrapped = self._master.wrap(subject, self._random(KEY), self._random(NONCE))
        key = self._unwrap(subject, await self.keyring.add(subject, wrapped, self._master.name))
        nonce = self._random(NONCE)
        return write_sealed(Box(subject, nonce, AESGCM(key).encrypt(nonce, text.encode(), subject.encode())))

    async def open(self, text: str) -> str:
        """What was sealed; a text that is not sealed is its own.

        Raises Rejected `erased`, `other-master-key`, `key-damaged`, LogUnavailable.
        """
        box = read_sealed(text)
        if box is None:
            return text
        kept = await self.keyring.find([box.subject])
        return self._open(box, kept.get(box.subject, _NEVER))

    async def reveal(self, texts: Collection[str]) -> Mapping[str, str]:
        """Each text as it is shown to whoever may read it; in place of one that cannot be opened stands why, such as
        `(erased)`. Raises LogUnavailable."""
        boxes = {text: box for text in texts if (box := read_sealed(text)) is not None}
        kept = await self.keyring.find({box.subject for box in boxes.values()}) if boxes else {}
        shown = {text: text for text in texts}
        for text, box in boxes.items():
            try:
                shown[text] = self._open(box, kept.get(box.subject, _NEVER))
            except Rejected as refusal:
                shown[text] = f"({refusal.code})"
        return shown

    def _open(self, box: Box, kept: Kept) -> str:
        key = self._unwrap(box.subject, kept)
        try:
            return AESGCM(key).decrypt(box.nonce, box.ciphertext, box.subject.encode()).decode()
        except InvalidTag as error:
            raise Rejected("key-damaged", f"what is sealed for {box.subject} was not sealed with its key") from error

    def _unwrap(self, subject: Stream, kept: Kept) -> bytes:
        if kept.wrapped is None:
            raise Rejected(
                "erased",
                f"what was sealed for {subject} cannot be read any more: its key is erased",
                hint="vmorch event list --subject audit/erasures",
            )
        if kept.master != self._master.name:
            raise missing(f"the key of {subject} is wrapped by another master key than this server's")
        return self._master.unwrap(subject, kept.wrapped)
