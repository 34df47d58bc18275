"""Rollouts with vLLM: continuous batching in processes of its own, its weights replaced in place between steps."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.common.errors import ConfigError, UserError
from effopd.common.formatting import shortened
from effopd.config.runtime_options import runtime_options
from effopd.data.rollouts import Rollouts
from effopd.engines.vllm_worker import WeightsExtension
from effopd.models.lm_head import KnownTokens
from effopd.models.models import load_weights_into, special_ids, write_checkpoint
from effopd.specs.engines import Sampling

GIB = 2**30
MEMORY_FOLDER = Path("/dev/shm")  # weights pass through memory if there is room
# Set while vLLM starts. Its scheduler stays in this process; its workers are processes of their own, as the trainer's
# process group is here, and they end with this one. No network, no reports, and its log goes where the job's own goes.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
UNKNOWN_TOKENS = "effopd_unknown_tokens"  # where vllm_logits.py finds them in vLLM's own configuration
LONGEST_REASON = 400  # characters of what vLLM says, which can be pages
# What torch's launcher tells the ranks of a job: vLLM's processes are not among them.
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class VllmEngine:
    """Samples from a causal language model that vLLM holds, in `dtype`.

    It starts when it first generates. Each prompt has a generator of its own, but its logits depend in their last bits
    on what it was batched with, and batches form as vLLM's scheduler likes: two runs need not be bitwise equal.
    """

    def __init__(self, model: PreTrainedModel, *, eos_id: int, tokens: KnownTokens, context: int, dtype: str) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "config: the engine is 'vllm', which is not installed here. Install `effopd[vllm]` on a GPU, use the "
                "environment of `make setup-vllm` on a CPU, or choose `engine: transformers`."
            )
        self.model, self.eos_id, self.context, self.dtype = model, eos_id, context, dtype
        self._unknown = tokens.unknown(model.config.get_text_config().vocab_size)
        self.options: dict[str, Any] = runtime_options()["vllm"]
        self._on_gpu = model.device.type == "cuda"
        self._sleeps = self._on_gpu and self.options["sleep"]
        self._asleep = False
        self._llm: Any = None
        self._tainted = False  # whether numbers that are not finite may be in its cache
        self._next: Path | None = None  # folder of the weights to take up before generating
        size = sum(p.numel() for p in model.parameters()) * getattr(torch, dtype).itemsize
        self._folder = Path(tempfile.mkdtemp(prefix="effopd-vllm-", dir=roomy_folder(size)))

    @staticmethod
    def of(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, batch_size: int, context: int, dtype: str
    ) -> VllmEngine:
        """An engine of the tokenizer's tokens and ends. vLLM forms batches itself, of no fixed size."""
        tokens = KnownTokens.of(tokenizer)
        return VllmEngine(model, eos_id=special_ids(tokenizer)[0], tokens=tokens, context=context, dtype=dtype)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        load_weights_into(self.model, weights)
        self.sync_weights()

    def sync_weights(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        write_checkpoint(self.model, getattr(torch, self.dtype), folder)
        if self._next is not None:
            shutil.rmtree(self._next)
        self._next = folder

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        from vllm import SamplingParams

        self._wake_with_newest_weights()
        asked = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                logprobs=0,  # the sampled token's alone
                ignore_eos=True,  # the tokenizer's end of sequence, and no other that the model's files may name
                stop_token_ids=[self.eos_id],
                detokenize=False,
            )
            for seed in seeds
        ]
        with self._explained("stopped while generating"):
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], asked, use_tqdm=False
            )
        if self._sleeps:
            self._llm.sleep(level=1)  # its weights wait in main memory, and the GPU is the trainer's
            self._asleep = True
        completions = [list(output.outputs[0].token_ids) for output in outputs]
        logprobs = [
            np.array([row[token].logprob for token, row in zip(tokens, output.outputs[0].logprobs, strict=True)])
            for tokens, output in zip(completions, outputs, strict=True)
        ]
        self._tainted = self._tainted or not all(np.isfinite(row).all() for row in logprobs)
        return Rollouts(
            prompts=[list(prompt) for prompt in prompts],
            completions=completions,
            logprobs=[row.astype(np.float32) for row in logprobs],
            finished=[tokens[-1] == self.eos_id for tokens in completions],
        )

    def close(self) -> None:
        """End vLLM's processes and delete what they read."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wake_with_newest_weights(self) -> None:
        if self._llm is None and self._next is None:
            self.sync_weights()
        with self._explained("did not take up the weights" if self._llm else "did not start"):
            if self._llm is None:
                self._start()
            elif self._asleep:
                self._llm.wake_up()
                self._asleep = False
            if self._next is None:
                return
            if self._started_from != self._next:
                self._llm.collective_rpc("replace_weights", args=(str(self._next), self._tainted))
                self._tainted = False
                self._llm.reset_prefix_cache()
        shutil.rmtree(self._next)
        self._next = None

    def _start(self) -> None:
        with _environment({**ENVIRONMENT, **self._placement()}):
            from vllm import LLM

            from effopd.engines.vllm_logits import KnownTokensOnly

            self._started_from = self._next
            self._llm = LLM(
                str(self._next),
                dtype=self.dtype,
                seed=0,
                skip_tokenizer_init=True,
                generation_config="vllm",  # nothing from the model's own sampling settings
                max_model_len=self.context,
                max_num_seqs=self.options["max_sequences"],
                tensor_parallel_size=self.options["tensor_parallel"],
                distributed_executor_backend="mp",
                enable_prefix_caching=False,
                logprobs_mode="processed_logprobs",  # of the distribution sampled from, its temperature included
                # Not `allowed_token_ids` of each request: hundreds of thousands of numbers for each completion.
                logits_processors=[KnownTokensOnly] if self._unknown else None,
                additional_config={UNKNOWN_TOKENS: self._unknown},
                worker_extension_cls=f"{WeightsExtension.__module__}.{WeightsExtension.__qualname__}",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **(
                    {
                        "gpu_memory_utilization": self.options["memory_fraction"],
                        "enable_sleep_mode": self._sleeps,
                    }
                    if self._on_gpu
                    else {
                        "kv_cache_memory_bytes": int(self.options["cpu_cache_gb"] * GIB),
                        "enforce_eager": True,  # compiling takes longer than it saves
                    }
                ),
            )

    def _placement(self) -> dict[str, str]:
        """The GPUs, or CPU threads, of vLLM's processes. Raises ConfigError if there are too few GPUs."""
        count, rank = self.options["tensor_parallel"], int(os.environ.get("LOCAL_RANK", "0"))
        if not self._on_gpu:
            return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # other jobs are at work on the same cores
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = shown.split(",") if shown else [str(gpu) for gpu in range(torch.cuda.device_count())]
        mine = gpus[rank * count : (rank + 1) * count]
        if len(mine) < count:
            raise ConfigError(
                f"config: `runtime.vllm.tensor_parallel` is {count}, and this job sees {len(gpus)} GPUs for "
                f"{os.environ.get('LOCAL_WORLD_SIZE', '1')} ranks. Lower it, or give the job more GPUs."
            )
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """vLLM's failures as one line; its own account of the cause is in the log by then."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self.close()
            raise UserError(
                f"vLLM {what}: {reason_of(error)} Its own lines above say why; where memory is short, lower "
                "`runtime.vllm.memory_fraction` or `max_sequences`. `engine: transformers` runs every model."
            ) from error


def roomy_folder(size: int) -> Path | None:
    """Where weights of so many bytes pass through: memory, else the usual temporary folder (None).

    Memory if twice their size is free there for each rank of this machine: all look before any writes.
    """
    needed = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (2 * size + GIB)
    return MEMORY_FOLDER if MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > needed else None


def reason_of(error: Exception) -> str:
    """What an exception says, as a sentence in one line, cut if it is long; its type if it says nothing."""
    said = shortened(" ".join(str(error).split()).rstrip(" ."), LONGEST_REASON) or type(error).__name__
    return said if said.endswith("…") else f"{said}."


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that start meanwhile, without those that launchers give to ranks."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(OF_RANKS)]:
        del os.environ[name]
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
