"""Asking a guest over the network ends in time, whatever the guest does."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from hostagent.probe import SECONDS, answers_http, answers_tcp


@contextmanager
def guest(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that listens on a port and treats each caller so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    with line, suppress(OSError):
                        line.recv(1024)
                        serve(line)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("status", [b"HTTP/1.1 200 OK", b"HTTP/1.0 204 No Content", b"HTTP/1.1 299"])
def test_a_guest_that_answers_2xx_is_up(status: bytes) -> None:
    with guest(lambda line: line.sendall(status + b"\r\n\r\n")) as port:
        assert answers_http("127.0.0.1", port, "/ready") == ""
        assert answers_tcp("127.0.0.1", port) == ""


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (b"HTTP/1.1 503 Busy\r\n\r\n", "the answer is 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "the answer is 302"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
        (b"", "the answer is not HTTP"),
        (b"x" * 100_000, "the answer is not HTTP"),
    ],
)
def test_any_other_answer_is_named(answer: bytes, trouble: str) -> None:
    with guest(lambda line: line.sendall(answer)) as port:
        assert answers_http("127.0.0.1", port, "/") == trouble


def test_a_guest_that_sends_a_byte_now_and_then_does_not_hold_its_asker() -> None:
    def drip(line: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK" * 100:
            line.sendall(bytes([byte]))
            time.sleep(0.3)

    with guest(drip) as port:
        began = time.monotonic()
        assert answers_http("127.0.0.1", port, "/") == "timed out"
        assert time.monotonic() - began < SECONDS + 1


def test_a_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert answers_tcp("127.0.0.1", port) == "Connection refused"
    assert answers_http("127.0.0.1", port, "/") == "Connection refused"
