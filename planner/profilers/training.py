"""Fine-tuning on one replica: tokens per second from the arithmetic of a training step, and whether it fits.

    tokens/s = GPUs x peak x MFU / (f P + f/2 x attention of the forward pass)

P: parameters that a token is multiplied with; f: FLOPs per parameter and token (8 with recomputed activations where all
weights learn). The weights, gradients and the optimiser's state are spread over the replica's GPUs; each works on a
sequence of its own, with the inputs of all layers kept and one layer at a time worked out again. The numbers and their
sources: profiles/efficiency.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.provenance import Provenance, ProvenanceKind
from planner.profilers import roofline
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.profilers.efficiency import EstimatorParams

TRAINING_FORMAT = "bf16"
"""Number format of the arithmetic."""
SOURCE = "training estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEstimate:
    """How fast one replica fine-tunes a model."""

    tokens_per_s: float
    """0 = it cannot."""
    limiting: str
    """What bounds the rate, or why it is 0."""
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One way to fine-tune."""

    method: str
    """full or lora."""
    sequence_tokens: int
    shares_weights: bool = False
    """Beside an engine that has the weights in memory already: what the engine leaves free must hold the rest."""


def training_estimate(
    model: ModelArchitecture, gpu: GpuSpec, n_gpus: int, training: Training, params: EstimatorParams
) -> TrainingEstimate:
    """Return how fast `n_gpus` GPUs of one instance fine-tune `model`, and what stands in the way where they cannot."""
    mfu = params.value("training_flops_fraction", gpu.architecture)
    origin = Provenance(
        kind=ProvenanceKind.ESTIMATED, source=SOURCE, note=f"{mfu:.2f} of the peak arithmetic, as published runs reach"
    )
    reason = _misfit(model, gpu, n_gpus, training, params)
    if reason:
        return TrainingEstimate(tokens_per_s=0.0, limiting=reason, provenance=origin)
    rate = n_gpus * gpu.peak_flops[TRAINING_FORMAT] * mfu / flops_per_token(model, training, params)
    return TrainingEstimate(tokens_per_s=rate, limiting="arithmetic", provenance=origin)


def flops_per_token(model: ModelArchitecture, training: Training, params: EstimatorParams) -> float:
    """Return the FLOPs of one token of a training step, recomputed activations included."""
    factor = params.value("training_flops_per_param", training.method)
    multiplied = sum(group.count * (group.mixer_params + group.mlp_active_params) for group in model.layers)
    head = float(model.vocab_size) * (model.embedding_width or model.hidden_size)
    length = np.array([float(training.sequence_tokens)])
    attention = float(roofline.prefill_attention_flops(model, length)[0]) / training.sequence_tokens
    return factor * (multiplied + head) + factor / 2 * attention


def memory_bytes(model: ModelArchitecture, n_gpus: int, training: Training, params: EstimatorParams) -> float:
    """Return what training takes on each GPU of a replica beside the engine's own, if it shares the weights."""
    per_param = params.value("training_bytes_per_param", training.method)
    if training.shares_weights:
        per_param -= params.value("training_weight_bytes", training.method)
    layer = params.value("training_layer_bytes", "default")
    kept = params.value("training_kept_bytes", "default") * model.n_layers
    logits = params.value("training_logit_bytes", "default") * model.vocab_size
    return model.total_params * per_param / n_gpus + training.sequence_tokens * (
        model.hidden_size * (layer + kept) + logits
    )


def _misfit(model: ModelArchitecture, gpu: GpuSpec, n_gpus: int, training: Training, params: EstimatorParams) -> str:
    """Return in words why training cannot run there; "" if it can."""
    if TRAINING_FORMAT not in gpu.peak_flops:
        return f"{gpu.name} has no tensor arithmetic for {TRAINING_FORMAT}"
    if training.shares_weights and training.method == "full":
        return "a service's weights cannot learn while they serve"
    if training.sequence_tokens > model.max_context_tokens:
        return f"{training.sequence_tokens:,} tokens exceed the model's context of {model.max_context_tokens:,} tokens"
    fraction = params.value("memory_fraction", "default")
    usable = gpu.memory_bytes * (1 - fraction if training.shares_weights else fraction)
    needed = memory_bytes(model, n_gpus, training, params)
    if needed <= usable:
        return ""
    return (
        f"{training.method} fine-tuning takes {format_bytes(needed)} on each of {n_gpus} x {gpu.name}, and "
        f"{format_bytes(usable)} are free"
    )
