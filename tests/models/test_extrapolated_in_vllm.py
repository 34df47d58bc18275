"""What `effopd extrapolate` writes is a folder that vLLM loads, as it is."""

import torch

from checkpoint_tensors import tensors
from effopd.engines.base import build_engine
from effopd.engines.vllm_engine import ENVIRONMENT
from effopd.models.extrapolated_files import extrapolate_folder
from effopd.models.models import load_model
from effopd.specs.engines import EngineSettings, Sampling
from effopd.tasks.base import build_task
from engine_prompts import LIMIT, PROMPTS, SEEDS
from tiny_models import TASK_SECTION, make_model
from vllm_here import needs_vllm

pytestmark = needs_vllm("extrapolated")


def drifted(folder, drift):
    """A tied model in bfloat16, in shards; `drift` moves every weight."""
    model = make_model(0, head_dim=32, tied=True)  # vLLM's attention on CPUs has no narrower heads
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += drift * torch.randn(parameter.shape, generator=generator)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    return folder


def greedy_in_transformers(folder):
    model, tokenizer = load_model(folder, torch.device("cpu")), build_task(TASK_SECTION).make_tokenizer()
    engine = build_engine(EngineSettings("transformers"), model, tokenizer, batch_size=len(PROMPTS), context=64)
    return engine.generate(PROMPTS, SEEDS, Sampling(0.0, LIMIT)).completions


def greedy_in_vllm(folder):
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder),
        dtype="float32",  # of bfloat16 numbers: both engines compute with the same
        skip_tokenizer_init=True,
        max_model_len=64,
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2**28,
    )
    asked = SamplingParams(temperature=0, max_tokens=LIMIT, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], asked, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_a_tied_candidate_in_bfloat16_shards_generates_in_vllm_what_it_does_in_transformers(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    anchor, current = drifted(tmp_path / "anchor", 0.0), drifted(tmp_path / "current", 0.05)
    candidate = tmp_path / "candidate"
    extrapolate_folder(anchor, current, 4.0, candidate, parameters="all")
    assert len(list(candidate.glob("*.safetensors"))) > 2
    assert {tensor.dtype for tensor in tensors(candidate).values()} == {torch.bfloat16}
    assert not any("lm_head" in name for name in tensors(candidate)), "the head is the embedding"
    wanted = greedy_in_transformers(candidate)
    assert wanted != greedy_in_transformers(current), "the step changes nothing: the test would see nothing"
    assert greedy_in_vllm(candidate) == wanted
