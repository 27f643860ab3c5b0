"""A server that speaks the public HTTP contract, over TCP or a Unix socket, with what a test tells it to hold.

Documents are made from the core's resources, so that they cannot differ in shape from the real ones. Every request
is kept for the test to look at.
"""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from msgspec import Struct

from vmorch.core.aggregates.host import Capacity
from vmorch.core.codes import CODES
from vmorch.core.drain_resources import BudgetResource, CauseResource, DrainDetail, DrainVm, HostAfterResource
from vmorch.core.ids import Digest, GiB, MiB
from vmorch.core.resources import (
    CertificateResource,
    DifferenceResource,
    EventResource,
    HostResource,
    ImageResource,
    OperationResource,
    Pending,
    SnapshotDetail,
    SnapshotResource,
    StepResource,
    VmResource,
)
from vmorch.core.spec import DiskSpec, HostFacts, ImagePin, NicSpec, VmSpec

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
OP = "0192f0c1-8d3a-7c21-9f00-5d1e6a2b3c4d"


class Asked(Struct, frozen=True):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"null")


class Reply(Struct, frozen=True):
    """An answer: a document, or chunks of a stream as they come."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    stream: Iterator[bytes] | None = None
    drop: bool = False


Handler = Callable[[Asked], Reply]


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
        api: Api = self.server.api  # type: ignore[attr-defined]  # both servers below have it
        api.asked.append(asked)
        handler = api.routes.get((self.command, parts.path))
        reply = problem("not-found", f"nothing at {parts.path}") if handler is None else handler(asked)
        if reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Vmorch-Position", "48204")
        if reply.stream is None:
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in reply.stream:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "local"


class _Server(socketserver.ThreadingMixIn):
    daemon_threads = True
    api: "Api"


class _Tcp(_Server, socketserver.TCPServer):
    allow_reuse_address = True


class _Unix(_Server, socketserver.UnixStreamServer):
    pass


class Api:
    """The routes that a test fills, served while the context lasts."""

    def __init__(self, unix: Path | None = None, port: int = 0) -> None:
        self.routes: dict[tuple[str, str], Handler] = {}
        self.asked: list[Asked] = []
        self._server: _Tcp | _Unix
        if unix is None:
            self._server = _Tcp(("127.0.0.1", port), _Requests)
            self.port = self._server.server_address[1]
            self.url = f"http://127.0.0.1:{self.port}"
        else:
            self._server = _Unix(str(unix), _Requests)
            self.url = f"unix:{unix}"
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Api":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def on(self, route: str, answer: Handler | Reply) -> None:
        """Answer `METHOD /path` with this."""
        method, path = route.split(" ", 1)
        self.routes[(method, path)] = answer if callable(answer) else lambda asked: answer

    def changes(self) -> list[Asked]:
        """The requests that were not reads, in order."""
        return [each for each in self.asked if each.method != "GET"]


def document(kind: str, **fields: Any) -> Reply:
    return Reply(msgspec.json.encode({"apiVersion": "v1", "kind": kind, **fields}))


def single(kind: str, item: Any) -> Reply:
    return document(kind, asOf={"position": 48204, "time": AT}, item=item)


def listing(kind: str, items: list[Any], next: str | None = None) -> Reply:
    return document(f"{kind}List", asOf={"position": 48204, "time": AT}, items=items, next=next)


def problem(code: str, detail: str, **more: Any) -> Reply:
    fields = {
        "type": code,
        "title": CODES[code].title,
        "status": CODES[code].status,
        "detail": detail,
        "code": code,
    }
    body = {"hint": "", "facts": {}, "instance": "r-1", **fields, **more}
    return Reply(msgspec.json.encode(body), CODES[code].status, "application/problem+json")


def accepted(name: str, operation: str | None = OP) -> Reply:
    body = {"apiVersion": "v1", "kind": "Accepted", "subject": f"id-{name}", "name": name, "position": 48190}
    return Reply(msgspec.json.encode({**body, "operation": operation}), 202)


def events(*documents: tuple[str, Any]) -> Iterator[bytes]:
    for event, data in documents:
        yield f"event: {event}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def stream(chunks: Iterator[bytes]) -> Reply:
    return Reply(content_type="text/event-stream", stream=chunks)


SPEC = VmSpec(
    vcpus=4,
    max_vcpus=8,
    memory=MiB(8192),
    max_memory=MiB(8192),
    disks=(
        DiskSpec(
            name="vda",
            size=GiB(40),
            image=ImagePin(digest=Digest("9b" * 32), format="qcow2", size=10, virtual_size=20),
        ),
    ),
    nics=(NicSpec(mac="52:54:00:aa:bb:cc", network="prod", address="10.0.4.13/24"),),
)


def vm(name: str, **more: Any) -> VmResource:
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "state": "running",
        "power": "running",
        "power_reason": "",
        "host": "hv-02",
        "host_reachable": True,
        "vcpus": 4,
        "memory": 8192,
        "disk": 40,
        "addresses": ("10.0.4.13",),
        "labels": {"app": "web"},
        "image": "debian-13",
        "pending": {},
        "drift": (),
        "operation": None,
        "eviction": "live",
        "traces": (),
        "frozen": None,
        "epoch": 1,
        "version": 17,
        "created_at": AT,
        "observed_at": AT,
        "spec": SPEC,
        "snapshots": (),
        "layers_deep": 1,
        "layers_most": 32,
        "schedule": None,
    }
    return VmResource(**{**fields, **more})


def snapshot(name: str, number: int = 1, parent: str | None = None, **more: Any) -> SnapshotResource:
    return SnapshotResource(**_snapshot(name, number, parent, more))


def snapshot_detail(name: str, number: int = 1, parent: str | None = None, **more: Any) -> SnapshotDetail:
    fields: dict[str, Any] = {
        "vm": "id-db-1",
        "vm_name": "db-1",
        "children": (),
        "descendants": (),
        "differs": (),
        "spec": SPEC,
    }
    return SnapshotDetail(**_snapshot(name, number, parent, {**fields, **more}))


def _snapshot(name: str, number: int, parent: str | None, more: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": name,
        "number": number,
        "parent": parent,
        "current": False,
        "quality": "frozen",
        "memory": False,
        "power": "running",
        "origin": "operator",
        "description": "",
        "taken_at": AT,
        "frozen": 0.4,
        "layers": {"vda": number - 1},
    }
    return {**fields, **more}


def difference(field: str, then: str | None, now: str | None) -> DifferenceResource:
    return DifferenceResource(field=field, then=then, now=now)


def pending(live: int, asked: int) -> Pending:
    return Pending(live=live, asked=asked)


def operation(state: str = "running", steps: str = "", **more: Any) -> OperationResource:
    """An operation whose steps are written as `label:state label:state`."""
    made = tuple(
        StepResource(index=index, label=each.split(":")[0], host="hv-02", state=each.split(":")[1])
        for index, each in enumerate(steps.split())
    )
    fields: dict[str, Any] = {
        "id": OP,
        "verb": "create",
        "vm": "id-web-3",
        "vm_name": "web-3",
        "state": state,
        "code": "",
        "message": "",
        "actor": "oncall",
        "reason": "",
        "arguments": {},
        "steps": made,
        "started_at": AT,
        "ended_at": None,
    }
    return OperationResource(**{**fields, **more})


def host(name: str, **more: Any) -> HostResource:
    facts = HostFacts(
        hostname=name,
        machine_id="m",
        cpus=32,
        memory=MiB(524288),
        local_gib=GiB(2000),
        accel="kvm",
        libvirt="9.0.0",
    )
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "state": "active",
        "agent": "connected",
        "since": AT,
        "cordoned": None,
        "vms": 21,
        "total": Capacity(vcpus=128, memory=524288, local_gib=2000, shared_gib=0),
        "promised": Capacity(vcpus=84, memory=379904, local_gib=840, shared_gib=0),
        "labels": {"rack": "b2"},
        "overcommit": {"cpu": 4.0, "memory": 1.0, "disk": 1.0},
        "unmanaged": (),
        "facts": facts,
        "certificate": CertificateResource(
            fingerprint="5f" * 32, serial="1a2b", names=(name, "10.0.0.7"), expires=AT + timedelta(days=89)
        ),
        "version": 3,
    }
    return HostResource(**{**fields, **more})


def drain_vm(name: str, state: str, **more: Any) -> DrainVm:
    causes = tuple(CauseResource(why=why, hosts=(), number=0) for why in more.pop("causes", ()))
    fields: dict[str, Any] = {
        "vm": f"id-{name}",
        "name": name,
        "state": state,
        "source": "hv-03",
        "destination": "hv-01",
        "host": "hv-01" if state == "moved" else "hv-03",
        "how": "live",
        "wave": 1,
        "memory": 8192,
        "copy_disks": False,
        "estimate": 12.0,
        "why": "71% of memory left",
        "operation": None,
        "doing": "",
        "waits_for": "",
        "code": "",
        "message": "",
        "causes": causes,
    }
    return DrainVm(**{**fields, **more})


def blocked_vm(name: str, *causes: str) -> DrainVm:
    return drain_vm(name, "blocked", destination=None, how=None, wave=None, why="", estimate=0.0, causes=causes)


def drain(state: str, *vms: DrainVm, **more: Any) -> DrainDetail:
    fields: dict[str, Any] = {
        "id": OP,
        "purpose": "drain",
        "state": state,
        "hosts": ("hv-03",),
        "vms": {},
        "waves": max((each.wave or 0 for each in vms), default=0),
        "estimate": 540.0,
        "survivable": True,
        "on_blocked": "refuse",
        "actor": "oncall",
        "reason": "",
        "parent": "",
        "position": 48250,
        "planned_at": AT,
        "started_at": None if state == "planned" else AT,
        "deadline": None,
        "ended_at": AT if state not in ("planned", "running", "ending") else None,
        "version": 3,
        "lines": vms,
        "after": (HostAfterResource(host="hv-01", vms=9, memory=0.71, vcpus=0.5, disk=0.2, memory_before=0.4),),
        "losses": (),
        "on_local_disks": 0,
        "max_parallel": None,
        "copy_disks": True,
        "limit": None,
        "kept": 0,
    }
    return DrainDetail(**{**fields, **more})


def budget(name: str, **more: Any) -> BudgetResource:
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "selector": {"app": name},
        "max_unavailable": 2,
        "vms": 5,
        "away": (f"{name}-1",),
        "created_at": AT,
        "version": 1,
    }
    return BudgetResource(**{**fields, **more})


def image(name: str, **more: Any) -> ImageResource:
    fields: dict[str, Any] = {
        "id": f"id-{name}",
        "name": name,
        "digest": "9b" * 32,
        "format": "qcow2",
        "size": 350 * 1024**2,
        "virtual_size": 3 * 1024**3,
        "source": "upload",
        "added_at": AT,
        "version": 1,
    }
    return ImageResource(**{**fields, **more})


def event(position: int, kind: str, data: Any, **more: Any) -> EventResource:
    fields: dict[str, Any] = {
        "position": position,
        "time": AT,
        "kind": kind,
        "schema": 1,
        "subject": "vm/id-web-1",
        "subject_name": "web-1",
        "version": 1,
        "actor": "oncall",
        "reason": "",
        "operation": None,
        "causation": None,
        "correlation": None,
        "request": None,
        "data": data,
    }
    return EventResource(**{**fields, **more})
