"""What a sandbox's two sides say to each other: JSON objects behind their length, bytes in base64.

Imports the standard library alone, as all that runs in the sandbox's own interpreter.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Write a JSON message, preceded by its length, to a descriptor."""
    text = json.dumps(message).encode()
    rest = memoryview(struct.pack("!I", len(text)) + text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> dict[str, Any] | None:
    """The next message, or None if the other side has gone."""
    header = _exactly(descriptor, 4)
    text = _exactly(descriptor, struct.unpack("!I", header)[0]) if header is not None else None
    if text is None:
        return None
    message: dict[str, Any] = json.loads(text)
    return message


def packed(content: bytes) -> str:
    """Bytes as text for a JSON message."""
    return base64.b64encode(content).decode()


def unpacked(text: str) -> bytes:
    """The bytes of a text that `packed` made."""
    return base64.b64decode(text)


def _exactly(descriptor: int, count: int) -> bytes | None:
    received = bytearray()
    while len(received) < count:
        part = os.read(descriptor, min(count - len(received), 2**20))
        if not part:
            return None
        received += part
    return bytes(received)
