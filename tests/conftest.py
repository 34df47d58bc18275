"""Settings of all tests."""

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

# Modules are compiled once, not by each of the hundreds of interpreters and forks that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, tests that share a fixture of their module run in one, so that it is made once."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        definitions = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        shared = {definition.argname for definition in definitions if definition.scope == "module"}
        if shared:
            chosen = item.callspec.indices.items() if hasattr(item, "callspec") else ()
            places = [f"{name}{place}" for name, place in chosen if name in shared]
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *places])))
