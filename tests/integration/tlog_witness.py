"""A witness of its own: the C2SP tlog-witness protocol over HTTP, with its own memory and its own key."""

import asyncio
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vmorch.audit.merkle import extends
from vmorch.audit.notes import Checkpoint, Signature, VerifierKey, read_checkpoint, read_note, write_note
from vmorch.audit.signing import LogSigner, signed_by


class TlogWitness:
    """Holds the newest checkpoint of one log."""

    def __init__(self, key: VerifierKey) -> None:
        self.key = key
        self.held: Checkpoint | None = None
        self.own = LogSigner("witness.example", Ed25519PrivateKey.generate())
        self.url = ""

    def add(self, body: str) -> tuple[int, str]:
        head, _, text = body.partition("\n\n")
        first, *hashes = head.split("\n")
        old = int(first.removeprefix("old "))
        note = read_note(text)
        told = read_checkpoint(note)
        if told.origin != self.key.name:
            return 404, "unknown log"
        if not signed_by(note, self.key):
            return 403, "unknown key"
        if old > told.size:
            return 400, "old is larger"
        size = 0 if self.held is None else self.held.size
        if old != size:
            return 409, f"{size}\n"
        if self.held is not None:
            if told.size == size and told.root != self.held.root:
                return 409, f"{size}\n"
            if not extends(size, self.held.root, told.size, told.root, [b64decode(each) for each in hashes]):
                return 422, "the proof does not hold"
        self.held = told
        signature = Signature(self.own.key.name, self.own.key.id, bytes(64))
        return 200, write_note(type(note)("", (signature,))).lstrip("\n")

    @contextmanager
    def serving(self) -> Iterator[None]:
        witness = self

        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, answer = 404, ""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/add-checkpoint":
                    status, answer = witness.add(body.decode())
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


async def until_done(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()
