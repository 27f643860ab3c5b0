"""Images: brought in from a URL or uploaded, given out to hosts, removed.

Bytes come first and their name second: an image is in the log only when its bytes are safe on disk.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import msgspec
import structlog
from msgspec import Struct
from starlette.responses import FileResponse, Response

from vmorch.core.aggregates.image import ImageAdded
from vmorch.core.errors import Rejected, bad_value
from vmorch.core.fleet import Fleet
from vmorch.core.ids import Digest, ImageId, Position, split_stream
from vmorch.core.resources import ImageResource, image_resource
from vmorch.core.spec import ImageFormat, Name, Sha256
from vmorch.edge import answers, problems, requests, streams
from vmorch.edge.calls import Call
from vmorch.edge.images import Stored
from vmorch.edge.routes.reading import caught_up, page, state

logger = structlog.get_logger(__name__)

PROGRESS_EVERY = 0.5
"""Seconds between two progress events."""


class AddImage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bring in the image behind a URL. With `sha256` it is those bytes or nothing."""

    name: Name
    url: str
    sha256: Sha256 | None = None
    format: ImageFormat | None = None


class _Upload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    sha256: Sha256 | None = None
    format: ImageFormat | None = None
    source: str = "upload"


class _Progress:
    """How far a transfer is, for whoever watches it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.total: int | None = None

    def advance(self, bytes: int) -> None:
        self.bytes = bytes


async def list_images(call: Call) -> Response:
    docs, at, next = await page(call, "images")
    return answers.listing("Image", docs, at, next)


async def show_image(call: Call) -> Response:
    fleet = await state(call)
    image = fleet.images.get(ImageId(call.path("ref"))) or fleet.find_image(call.path("ref"))
    return answers.single("Image", image_resource(image), answers.as_of(fleet))


async def add_image(call: Call) -> Response:
    wanted = await requests.body(call.request, AddImage)
    progress = _Progress()
    if streams.MEDIA_TYPE in call.request.headers.get("Accept", ""):
        return streams.response(_told(call, progress, lambda: _fetch(call, wanted, progress)))
    return _added(call, await _fetch(call, wanted, progress))


async def upload_image(call: Call) -> Response:
    try:
        given = {"name": call.path("name"), **call.request.query_params}
        wanted = msgspec.convert(given, _Upload)
    except msgspec.ValidationError as error:
        raise bad_value(str(error)) from error
    done = await _repeated(call, wanted.name)
    if done is not None:
        return _added(call, done)
    told = call.request.headers.get("Content-Length")
    total = None if told is None else requests.whole_number(told, "Content-Length")
    settings = call.services.settings
    stored = await call.services.images.receive(
        call.request.stream(),
        max_bytes=settings.max_image_bytes,
        max_virtual_size=settings.max_virtual_size,
        total=total,
        expected=wanted.sha256,
        declared=wanted.format,
    )
    return _added(call, await _record(call, wanted.name, stored, wanted.source[:2048], wanted.sha256))


async def remove_image(call: Call) -> Response:
    receipt = await call.services.control.remove_image(call.path("ref"), call.caller)
    await caught_up(call.services, receipt.position)
    # only bytes that the log knows: a file that it does not know is somebody else's
    known = {image.pin.digest for image in call.fleet.images.values() if image.pin is not None}
    for digest in known - _needed(call.fleet):
        call.services.images.discard(digest)
    return answers.accepted(receipt)


async def image_content(call: Call) -> Response:
    digest = call.path("digest")
    path = call.services.images.path(digest)
    if path is None:
        raise Rejected("no-such-image", f"no image with the digest {digest!r} is stored here")
    return FileResponse(path, media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})


async def _repeated(call: Call, name: str) -> ImageResource | None:
    """The image that this very request added before, None if it is new. Raises Rejected.

    Asked before any byte moves, as is whether the name is free: recording would say both after gigabytes.
    """
    found = await call.services.log.request(call.request_id)
    if found is None:
        if any(image.name == name and not image.removed for image in call.fleet.images.values()):
            raise Rejected("name-taken", f"an image called {name} exists", hint=f"vmorch image describe {name}")
        return None
    first, last = found
    [record] = await call.services.log.read(Position(first - 1), 1)
    await caught_up(call.services, last)
    kind, id = split_stream(record.stream)
    image = call.fleet.images.get(ImageId(id)) if kind == "image" else None
    if image is None or image.name != name:
        raise Rejected("request-reused", f"request id {call.request_id} was used for another request")
    return image_resource(image)


async def _fetch(call: Call, wanted: AddImage, progress: _Progress) -> ImageResource:
    done = await _repeated(call, wanted.name)
    if done is not None:
        return done
    async with call.services.fetcher.fetch(wanted.url) as download:
        progress.total = download.total
        async with aclosing(download.chunks) as chunks:
            stored = await call.services.images.receive(
                chunks,
                max_bytes=call.services.settings.max_image_bytes,
                max_virtual_size=call.services.settings.max_virtual_size,
                total=download.total,
                expected=wanted.sha256,
                declared=wanted.format,
                progress=progress.advance,
            )
    return await _record(call, wanted.name, stored, wanted.url, wanted.sha256)


async def _record(call: Call, name: str, stored: Stored, source: str, expected: str | None) -> ImageResource:
    images = call.services.images
    event = ImageAdded(
        name=name,
        digest=stored.digest,
        format=stored.format,
        size=stored.size,
        virtual_size=stored.virtual_size,
        source=source,
        expected=expected is not None,
    )
    try:
        with images.holding(stored.digest):
            receipt = await call.services.control.add_image(event, call.caller)
    except Rejected:
        if stored.digest not in _needed(call.fleet):
            images.discard(stored.digest)
        raise
    await caught_up(call.services, receipt.position)
    return image_resource(call.fleet.images[ImageId(receipt.subject)])


def _added(call: Call, image: ImageResource) -> Response:
    return answers.single("Image", image, answers.as_of(call.fleet), status=201)


def _needed(fleet: Fleet) -> set[Digest]:
    """The bytes that a name or a living VM's disk stands on."""
    named = {image.pin.digest for image in fleet.images.values() if image.pin and not image.removed}
    specs = [vm.spec for vm in fleet.vms.values() if vm.deleted_at is None and vm.spec is not None]
    return named | {disk.image.digest for spec in specs for disk in spec.disks if disk.image}


async def _told(
    call: Call, progress: _Progress, work: Callable[[], Awaitable[ImageResource]]
) -> AsyncIterator[bytes]:
    """Progress while the work goes on, then the image or the problem. The work ends with its watcher."""
    task = asyncio.ensure_future(work())
    stop = asyncio.ensure_future(call.services.stopping.wait())
    try:
        while not task.done() and not stop.done():
            told = {"bytes": progress.bytes, "total": progress.total}
            yield streams.message(answers.encode(told), event="progress")
            await asyncio.wait({task, stop}, timeout=PROGRESS_EVERY, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            yield _outcome(call, task)
    finally:
        for each in (task, stop):
            each.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


def _outcome(call: Call, task: "asyncio.Future[ImageResource]") -> bytes:
    error = task.exception()
    if error is None:
        return streams.message(answers.encode(task.result()), event="image")
    refusal = error if isinstance(error, Rejected) else problems.refusal_of(error)
    if refusal is None:
        logger.error("request failed", request=call.request_id, path=call.request.url.path, exc_info=error)
        refusal = problems.fault()
    return streams.message(answers.encode(problems.problem_of(refusal, call.request_id)), event="problem")
