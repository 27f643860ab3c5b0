"""`vmorch image`."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import IO, Any

import click
import msgspec

from cli.changing import record
from cli.client import decode
from cli.listing import View, list_options, now, query_of, show_list
from cli.output import show_document, structured
from cli.problems import Problem, from_document
from cli.session import Session
from cli.shapes import Image, Single
from cli.table import Column, pairs
from cli.transport import quote
from cli.units import show_bytes, show_seconds, show_time
from cli.verbs import Entry, Group, SectionOption, change_options, compares, past_option, verb

_HERE = "cli.commands.image"

image = Group(
    "image",
    {
        "list": Entry(f"{_HERE}:list_images", "List images", "Look"),
        "describe": Entry(f"{_HERE}:describe", "Everything about an image", "Look"),
        "add": Entry(f"{_HERE}:add", "Bring in an image from a file or a URL", "Change"),
        "remove": Entry(f"{_HERE}:remove", "Forget an image", "Change"),
    },
    help="Disk images that VMs are made from.",
    foreign={
        "get": "vmorch image list",
        "ls": "vmorch image list",
        "show": "vmorch image describe NAME",
        "pull": "vmorch image add NAME --url URL",
        "import": "vmorch image add NAME --file FILE",
        "upload": "vmorch image add NAME --file FILE",
        "create": "vmorch image add NAME --file FILE",
        "delete": "vmorch image remove NAME",
        "rm": "vmorch image remove NAME",
    },
    examples=("vmorch image add debian-13 --file debian-13-generic-amd64.qcow2", "vmorch image list"),
)


def _columns(session: Session) -> Callable[[datetime], Sequence[Column[Image]]]:
    def columns(at: datetime) -> Sequence[Column[Image]]:
        return [
            Column(header="NAME", cell=lambda image: image.name),
            Column(header="FORMAT", cell=lambda image: image.format),
            Column(header="SIZE", cell=lambda image: show_bytes(image.size), right=True),
            Column(header="VIRTUAL", cell=lambda image: show_bytes(image.virtual_size), right=True),
            Column(header="DIGEST", cell=lambda image: image.digest[:12]),
            Column(header="SOURCE", cell=lambda image: image.source, wide=True),
            Column(header="AGE", cell=lambda image: show_time(image.added_at, at, session.times), right=True),
        ]

    return columns


@verb("list", examples=("vmorch image list", "vmorch image list 'debian-*' -o wide"), help="List images.")
@click.argument("pattern", required=False)
@list_options(labels=False, diff=True)
@click.pass_obj
def list_images(
    session: Session, /, pattern: str | None, no_headers: bool, watch: bool, **selection: Any
) -> None:
    view = View(
        path="/v1/images", shape=Image, columns=_columns(session), name=lambda image: image.name, noun="image"
    )
    show_list(session, view, query_of({"name": pattern, **selection}), headers=not no_headers, watch=watch)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from cli.completion import names

    return names(ctx, "images", incomplete)


@verb("describe", examples=("vmorch image describe debian-13",), help="Everything about an image.")
@click.argument("name", metavar="IMAGE", shell_complete=_complete)
@past_option
@click.pass_obj
@compares("image", "name")
def describe(session: Session, /, name: str) -> None:
    answer = session.client.get(f"/v1/images/{quote(name)}")
    if structured(session):
        show_document(session, answer.body)
    else:
        _show(session, decode(answer.body, Single[Image]).item)


def _show(session: Session, found: Image) -> None:
    if session.settings.output == "name":
        session.terminal.out(found.name)
        return
    rows = [
        ("Name", found.name),
        ("Id", found.id),
        ("Digest", f"sha256:{found.digest}"),
        ("Format", found.format),
        ("Size", f"{show_bytes(found.size)}, {show_bytes(found.virtual_size)} as a disk"),
        ("Source", found.source),
        ("Added", show_time(found.added_at, now(), session.times)),
    ]
    session.terminal.out("\n".join(pairs(rows)))


@verb(
    "add",
    examples=(
        "vmorch image add debian-13 --file debian-13-generic-amd64.qcow2",
        "vmorch image add debian-13 --sha256 9b1c... \\",
        "    --url https://cloud.debian.org/images/cloud/trixie/latest/...qcow2",
    ),
    help="Bring in an image from a file here or from a URL that the server fetches.",
)
@click.argument("name")
@click.option(
    "--file", "path", metavar="FILE", cls=SectionOption, section="Source", help="A file on this machine."
)
@click.option(
    "--url", metavar="URL", cls=SectionOption, section="Source", help="Where the server fetches it."
)
@click.option(
    "--sha256", metavar="HEX", cls=SectionOption, section="Source", help="These bytes and no others."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(("qcow2", "raw")),
    cls=SectionOption,
    section="Source",
    help="Default: what its first bytes say.",
)
@change_options(waits=False, plans=False)
@click.pass_obj
def add(
    session: Session, /, name: str, path: str | None, url: str | None, sha256: str | None, format_: str | None
) -> None:
    session.demand_reason()
    if (path is None) == (url is None):
        raise click.UsageError("give either --file or --url", click.get_current_context())
    digest = sha256.removeprefix("sha256:").lower() if sha256 else None
    wanted = {key: value for key, value in (("sha256", digest), ("format", format_)) if value}
    began = time.monotonic()
    if path is not None:
        document = _upload(session, name, path, wanted)
    else:
        document = _fetch(session, {"name": name, "url": str(url), **wanted})
    session.terminal.clear_live()
    if structured(session):
        show_document(session, document)
        return
    found = decode(document, Single[Image]).item
    if session.settings.output == "name":
        session.terminal.out(found.name)
    elif not session.terminal.quiet:
        took = show_seconds(time.monotonic() - began)
        size = show_bytes(found.size)
        session.terminal.out(
            f"{found.name} is there: {found.format}, {size}, sha256:{found.digest[:12]}  ({took})"
        )


class _Bar:
    """A transfer's progress on the moving line."""

    def __init__(self, session: Session, what: str, total: int | None) -> None:
        self._session = session
        self._what = what
        self.total = total
        self._began = time.monotonic()
        self._shown = 0.0

    def show(self, done: int) -> None:
        """So many bytes are through."""
        at = time.monotonic()
        if at - self._shown < 0.1 or not self._session.terminal.live:
            return
        self._shown = at
        speed = done / max(at - self._began, 0.001)
        text = f"  ..  {self._what}  {show_bytes(done)}"
        if self.total:
            filled = min(20, 20 * done // self.total)
            left = show_seconds(max(0, self.total - done) / speed) if speed else "-"
            text += f" of {show_bytes(self.total)}  [{'#' * filled}{'.' * (20 - filled)}]  {left} left"
        self._session.terminal.show_live(f"{text}  {show_bytes(speed)}/s")


def _upload(session: Session, name: str, path: str, wanted: dict[str, str]) -> bytes:
    try:
        source: IO[bytes] = open(path, "rb")  # noqa: SIM115  closed below, but opening has errors of its own
    except OSError as error:
        raise Problem("bad-request", f"--file: {path}: {error.strerror}") from error
    with source:
        size = os.fstat(source.fileno()).st_size
        bar = _Bar(session, f"uploading {name}", size)
        query = {**wanted, "source": os.path.basename(path)}
        session.terminal.note(f"uploading {path}, {show_bytes(size)}")
        answer = session.client.upload(
            name, source, size, query, request_id=session.request_id, progress=bar.show
        )
    return answer.body


def _fetch(session: Session, body: dict[str, str]) -> bytes:
    bar = _Bar(session, f"fetching {body['name']}", None)
    session.terminal.note(f"the server fetches {body['url']}")
    for event in session.client.change_stream("/v1/images", body, request_id=session.request_id):
        if event.event == "progress":
            progress = msgspec.json.decode(event.data, type=dict[str, int | None])
            bar.total = progress.get("total")
            bar.show(progress.get("bytes") or 0)
        elif event.event == "problem":
            raise from_document(event.data.encode(), 500)
        elif event.event == "image":
            item = msgspec.Raw(event.data.encode())
            return msgspec.json.encode({"apiVersion": "v1", "kind": "Image", "item": item})
    raise Problem(
        "server-unreachable",
        "the server stopped before the image was there",
        hint=f"vmorch image describe {body['name']} says whether it came; else repeat",
    )


@verb(
    "remove",
    examples=("vmorch image remove debian-12", "vmorch image remove debian-12 --yes"),
    help="Forget an image. VMs made from it keep their disks, and it is kept while they need it.",
)
@click.argument("name", metavar="IMAGE", shell_complete=_complete)
@change_options(confirms=True, waits=False, plans=False)
@click.pass_obj
def remove(session: Session, /, name: str, yes: bool) -> None:
    session.demand_reason()
    session.confirm(f"remove image {name}", name, yes=yes, asked_for="image's name")
    record(session, f"/v1/images/{quote(name)}/remove", {}, "{name} is removed (event {position})")
