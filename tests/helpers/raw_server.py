"""A server on the loopback that answers with any bytes at all, in any manner: what a broken server or a proxy may do."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Writes the answer to a request (its path, and its body as JSON) to the connection, which is closed afterwards.
Answer = Callable[[socket.socket, str, Any], None]


def http(status: str | int, body: bytes | str = b"", *headers: str) -> bytes:
    """A well-formed answer with `Content-Length`, unless a header of that kind or `Transfer-Encoding` is given."""
    content = body.encode() if isinstance(body, str) else body
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        headers = (*headers, f"Content-Length: {len(content)}")
    return "\r\n".join([f"HTTP/1.1 {status} said", "Connection: close", *headers, "", ""]).encode("latin-1") + content


def saying(content: bytes) -> Answer:
    """The same bytes for every request."""
    return lambda connection, path, body: connection.sendall(content)


@dataclass
class RawServer:
    """Where it is, what it says next, and what it was asked."""

    url: str
    answer: Answer
    paths: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)  # ends answers that never end by themselves

    def asked(self, name: str) -> int:
        """How often it was asked for a path that ends so."""
        return sum(path.endswith(name) for path in self.paths)


@contextmanager
def raw_server(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[RawServer]:
    """A server for a block of code."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = RawServer(f"http{'s' * bool(tls)}://127.0.0.1:{listener.getsockname()[1]}", answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_serve, args=(server, connection, tls), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(server: RawServer, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Read one request, answer it, and close the connection."""
    try:
        connection = tls.wrap_socket(connection, server_side=True) if tls else connection
        with connection, connection.makefile("rb") as reader:
            if not reader.peek(1)[:1].isalpha():  # not HTTP: TLS, say
                return
            head = []
            while (line := reader.readline()).strip():
                head.append(line.decode("latin-1").strip())
            length = next((int(h.split(":")[1]) for h in head if h.lower().startswith("content-length")), 0)
            body = json.loads(reader.read(length) or "null")
            path = head[0].split(" ")[1]
            server.paths.append(path)
            server.headers += head[1:]
            server.answer(connection, path, body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):  # so that closing does not discard what was sent
                pass
    except OSError:
        pass  # it hung up first
