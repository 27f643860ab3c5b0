"""An image: a name for bytes that were verified once and are known by digest ever after."""

from datetime import datetime
from typing import ClassVar

from msgspec.structs import replace

from vmorch.core.errors import Rejected
from vmorch.core.ids import ImageId
from vmorch.core.messages import Event, message
from vmorch.core.spec import ImageFormat, ImagePin, Sha256
from vmorch.core.value import Value


class Image(Value, frozen=True, kw_only=True):
    """An image, folded from its stream."""

    id: ImageId
    name: str = ""
    version: int = 0
    pin: ImagePin | None = None
    source: str = ""
    added_at: datetime | None = None
    removed: bool = False


class ImageEvent(Event, frozen=True, kw_only=True):
    """A fact about one image."""

    subject: ClassVar[str] = "image"

    def apply(self, image: Image, at: datetime) -> Image:
        """The image after this fact, which was recorded at `at`."""
        raise NotImplementedError(self.kind)


@message("image.added")
class ImageAdded(ImageEvent, frozen=True, kw_only=True):
    """These bytes were stored, their header read by our own reader, their digest computed.

    `expected` tells whether the operator named the digest beforehand (else it was pinned at first sight).
    """

    name: str
    digest: Sha256
    format: ImageFormat
    size: int
    virtual_size: int
    source: str
    expected: bool

    def apply(self, image: Image, at: datetime) -> Image:
        pin = ImagePin(
            digest=self.digest, format=self.format, size=self.size, virtual_size=self.virtual_size
        )
        return replace(image, name=self.name, pin=pin, source=self.source, added_at=at, removed=False)


@message("image.removed")
class ImageRemoved(ImageEvent, frozen=True, kw_only=True):
    """The name is free; bytes stay while a VM's disk stands on them."""

    def apply(self, image: Image, at: datetime) -> Image:
        return replace(image, removed=True)


def remove(image: Image) -> list[ImageEvent]:
    """Give up the image's name. Raises Rejected `already-so`."""
    if image.removed:
        raise Rejected("already-so", f"image {image.name} is already removed")
    return [ImageRemoved()]
