"""Bytes that training takes, from the number of parameters and the shape of a batch."""

from __future__ import annotations

from effopd.specs.updates import HoldingSettings

FLOAT32, BFLOAT16 = 4, 2
LIBRARIES = 0.62e9  # resident bytes of a job on a CPU before any weights: Python, torch, transformers, DeepSpeed


def width_of(dtype: str) -> int:
    """Bytes of a number of that type, `float32` or `bfloat16`."""
    return BFLOAT16 if dtype == "bfloat16" else FLOAT32


def state_bytes(parameters: float, factors: float | None = None) -> float:
    """A kept state on disk: float32 weights, what its optimizer holds, and the weights of an accepted candidate."""
    return 2 * FLOAT32 * parameters + optimizer_bytes(parameters, factors)


def optimizer_bytes(parameters: float, factors: float | None = None) -> float:
    """AdamW's two moments; with LoRA the numbers in its factors, and their moments."""
    return 2 * FLOAT32 * parameters if factors is None else 3 * FLOAT32 * factors


def lora_update_bytes(parameters: float, factors: float) -> float:
    """Merged weights; factors as they are and were before the step, their gradients and moments. All float32."""
    return FLOAT32 * parameters + 5 * FLOAT32 * factors


def update_bytes(parameters: float, ranks: int, zero_stage: int, precision: str, offload: bool) -> float:
    """Weights, gradients, masters and moments in the memory of each rank's device (ZeRO, arXiv 1910.02054).

    Gradients, masters and moments are float32. What a ZeRO stage shares out counts for a rank's share alone, and what
    is offloaded not at all.
    """
    share = parameters / ranks
    weights = width_of(precision) * (share if zero_stage == 3 else parameters)
    gradients = FLOAT32 * (share if zero_stage >= 2 else parameters)
    if zero_stage == 0:
        return weights + gradients + 2 * FLOAT32 * parameters
    return weights + gradients + (0 if offload else 3 * FLOAT32 * share)


def activation_bytes(positions: float, hidden_size: int, layers: int, precision: str, checkpointing: bool) -> float:
    """What a forward pass over that many positions keeps for the backward one (arXiv 2205.05198, attention fused).

    17 numbers a position, layer and unit of width; with checkpointing one, and all 17 of a single layer.
    """
    return width_of(precision) * positions * hidden_size * ((layers + 17) if checkpointing else 17 * layers)


def logits_bytes(positions: float, vocabulary: int, at_once: float) -> float:
    """The logits of a batch, at most `at_once` of them, in float32: log-softmax and the gradients of both too."""
    return 4 * FLOAT32 * min(positions * vocabulary, at_once)


def trained_bytes(
    settings: HoldingSettings,
    *,
    parameters: float,
    hidden_size: int,
    layers: int,
    positions: float,
    factors: float | None = None,
) -> float:
    """A model in training on each rank's device: the model, its optimizer and the activations of so many positions.

    `settings` are those of a run's training or of a model that the workflow trains, `factors` the numbers in LoRA's.
    Logits, which come a chunk at a time, and engines are left out.
    """
    precision = settings.precision
    if factors is not None:
        held = lora_update_bytes(parameters, factors)
    else:
        offload = settings.offload_optimizer
        held = update_bytes(parameters, settings.num_processes, settings.zero_stage, precision, offload)
    return held + activation_bytes(positions, hidden_size, layers, precision, settings.gradient_checkpointing)


def beside_bytes(precision: str, parameters: float, students: int, teacher: float) -> float:
    """Models beside the student at a run's update: further students in its precision, and a teacher of so many bytes.

    Which these are: effopd.workflow.experiment.Outline.beside_update.
    """
    return students * width_of(precision) * parameters + teacher


def resident_bytes(
    *,
    parameters: float,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    vocabulary: int,
    positions: float,
    at_once: float,
    passes: int = 1,
    trained: bool = True,
    beside: float = 0,
) -> float:
    """Peak resident memory of a job on a CPU that trains a model in float32, or that only asks it (not `trained`).

    `positions` are those of the largest pass, and at most `at_once` of its logits exist at a time; `beside` are bytes
    of other weights: a teacher's, a reference's, the anchor's. Training holds weights and two moments, and either the
    activations of a backward pass with a second gradient of the embedding, or all gradients with two temporary tensors
    of AdamW's; from the second of several `passes` on, activations and gradients.
    """
    embedding = FLOAT32 * vocabulary * hidden_size
    logits = FLOAT32 * min(positions * vocabulary, at_once)
    if not trained:
        return LIBRARIES + FLOAT32 * parameters + beside + 4 * logits
    kept = FLOAT32 * positions * layers * (13 * hidden_size + 4 * intermediate_size)
    gradients = FLOAT32 * parameters
    backward, step = kept + embedding + 3 * logits, gradients + 2 * embedding
    largest = max(backward, step) if passes == 1 else max(gradients + backward, step)
    return LIBRARIES + 3 * FLOAT32 * parameters + beside + largest
