"""Ask a guest over the network, once, within a bounded time and with a bounded answer.

The guest is a stranger: nothing that it sends is followed, kept or waited for. Must not retry.
"""

import socket
import time

SECONDS = 2.0
_STATUS_LINE_LIMIT = 256


def answers_tcp(address: str, port: int) -> str:
    """Empty if the port accepts a connection, else why not."""
    try:
        with socket.create_connection((address, port), timeout=SECONDS):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def answers_http(address: str, port: int, path: str) -> str:
    """Empty if a GET of the path is answered with a status from 200 to 299, else why not."""
    until = time.monotonic() + SECONDS
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: vmorch\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((address, port), timeout=SECONDS) as line:
            line.sendall(request.encode())
            return _judge(_first_line(line, until))
    except OSError as error:
        return error.strerror or str(error)


def _first_line(line: socket.socket, until: float) -> bytes:
    got = b""
    while b"\n" not in got and len(got) < _STATUS_LINE_LIMIT:
        # a guest that sends a byte now and then must not hold its asker
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        line.settimeout(left)
        more = line.recv(_STATUS_LINE_LIMIT)
        if not more:
            break
        got += more
    return got.split(b"\n", 1)[0].strip()


def _judge(status: bytes) -> str:
    words = status.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        return "the answer is not HTTP"
    return "" if words[1].startswith(b"2") else f"the answer is {words[1].decode()}"
