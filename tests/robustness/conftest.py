"""Fixtures of the robustness tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raw_server import RawServer, raw_server
from served_teacher import healthy


@pytest.fixture(scope="module")
def shared() -> Iterator[RawServer]:
    with raw_server(healthy) as server:
        yield server


@pytest.fixture
def server(shared: RawServer) -> RawServer:
    shared.answer = healthy
    shared.paths.clear()
    shared.headers.clear()
    return shared
