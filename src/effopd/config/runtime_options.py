"""The `runtime` section as a job sees it: how it runs, never what it makes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from effopd.common.errors import ConfigError

VARIABLE = "EFFOPD_RUNTIME"


def announce(runtime: Mapping[str, Any]) -> None:
    """Tell the jobs that start from this process, through the environment."""
    os.environ[VARIABLE] = json.dumps(runtime)


def runtime_options() -> dict[str, Any]:
    """The section that the workflow announced, with the defaults of what is missing in a job that is started by hand.

    Raises ConfigError if it is not one.
    """
    from effopd.config.schema import fill, schema

    try:
        announced = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError:
        announced = None
    if not isinstance(announced, dict):
        raise ConfigError(f"the environment variable {VARIABLE} is not a JSON object. Unset it, or fix it.")
    filled: dict[str, Any] = fill(announced, schema()["properties"]["runtime"])
    return filled


def endpoint_of(teacher: str) -> dict[str, Any]:
    """Where a teacher is served. Raises ConfigError if nobody said."""
    endpoints: dict[str, dict[str, Any]] = runtime_options()["endpoints"]
    if not {"url", "model"} <= set(endpoints.get(teacher, ())):
        raise ConfigError(
            f"config: `runtime.endpoints.{teacher}` does not say where the teacher is served. Give its `url` and "
            f"`model` there; a job started by hand finds `runtime` as JSON in the environment variable {VARIABLE}."
        )
    return endpoints[teacher]
