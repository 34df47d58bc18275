"""Tokens per second of both rollout engines on a CPU, on one random model, in turn.

    .venv-vllm/bin/python benchmarks/engines.py [--layers 4] [--width 128] [--prompts 128] [--tokens 64] [--repeats 3]

Prints each repeat and the ratio of medians, and what it takes to start vLLM and to take up new weights. Log-probs of
the sampled tokens are part of the work.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from effopd.engines.base import RolloutEngine, build_engine
from effopd.specs.engines import EngineSettings, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 4), ("width", 128), ("prompts", 128), ("tokens", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024, hidden_size=options.width, intermediate_size=3 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=16 + options.tokens, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    vocabulary = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>")
    model = Qwen3ForCausalLM(config).eval()
    prompts = torch.randint(2, 1024, (options.prompts, 16)).tolist()
    sampling = Sampling(1.0, options.tokens)

    def seconds_of(engine: RolloutEngine) -> tuple[float, int]:
        started = time.perf_counter()
        rollouts = engine.generate(prompts, list(range(len(prompts))), sampling)
        return time.perf_counter() - started, rollouts.completion_tokens

    engines, rates = {}, {}
    for name in ("transformers", "vllm"):
        settings = EngineSettings(name)
        engines[name] = build_engine(
            settings, model, tokenizer, batch_size=options.prompts, context=16 + options.tokens
        )
        rates[name] = []
        print(f"{name}: first generation {seconds_of(engines[name])[0]:.1f} s", flush=True)
    started = time.perf_counter()
    engines["vllm"].sync_weights()
    engines["vllm"].generate(prompts[:1], [0], Sampling(1.0, 1))
    print(f"vllm: new weights {time.perf_counter() - started:.2f} s")
    for _ in range(options.repeats):
        for name, engine in engines.items():
            seconds, tokens = seconds_of(engine)
            rates[name].append(tokens / seconds)
        print(", ".join(f"{name} {found[-1]:,.0f} tokens/s" for name, found in rates.items()), flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["vllm"], rates["transformers"], strict=True)]
    print(
        f"medians: {', '.join(f'{name} {rate:,.0f}' for name, rate in medians.items())}; vllm / transformers "
        f"{medians['vllm'] / medians['transformers']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    engines["vllm"].close()


if __name__ == "__main__":
    main()
