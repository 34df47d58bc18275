"""What vLLM's worker processes can do beside vLLM's own: named to vLLM, which mixes it into its workers."""

from __future__ import annotations

from typing import Any


class WeightsExtension:
    """Replaces weights in place."""

    def replace_weights(self: Any, folder: str, clear_cache: bool) -> None:
        """Load the checkpoint of a folder into the running model; and forget what the cache holds, if asked to.

        What a cache holds of finished texts is masked, but a NaN times 0 is a NaN.
        """
        if clear_cache:
            for cache in self.model_runner.kv_caches:
                cache.zero_()
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        if self.device.type != "cpu":
            return
        # On CPUs vLLM computes with a packed copy of the head, which stays the old one if it is tied.
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and module.weight.numel():
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
