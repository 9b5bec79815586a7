"""Two ways to run a model that change its steps: weights that stay outside of the GPU, and drafted tokens.

Nothing here was fitted: offloading is bytes over a link, drafting the expected number of accepted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.precision import weight_bytes

if TYPE_CHECKING:
    from planner.domain.hardware import EngineConfig
    from planner.domain.model import ModelArchitecture
    from planner.profilers.roofline import StepModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Weights in host memory or on disks, streamed layer by layer while the layer before them runs."""

    fraction: float
    """Of the weights; the rest, buffers included, is on the GPU."""
    bytes_per_s: float
    """Of the link, per GPU."""


def hiding_tokens(flops_per_s: float, bytes_per_parameter: float, bytes_per_s: float) -> float:
    """Return from how many tokens per step on the arithmetic hides the streaming of all weights: F w / (2 W).

    Examples
    --------
    >>> hiding_tokens(84e12, 2, 25e9)  # DeepSpeed Inference: 84 TFLOP/s, fp16 over PCIe 4
    3360.0
    """
    return flops_per_s * bytes_per_parameter / (2.0 * bytes_per_s)


def resident_fraction(n_layers: int, resident: int, in_flight: int) -> float:
    """Return the part of the weights on the GPU with `resident` layers kept and `in_flight` ones as buffers.

    Examples
    --------
    >>> resident_fraction(40, 12, 4)
    0.4
    """
    return min(1.0, (resident + in_flight) / n_layers)


def offloaded_steps(steps: StepModel, model: ModelArchitecture, config: EngineConfig, offload: Offload) -> StepModel:
    """Return the steps of a replica that streams a part of its weights once per step.

    The link and the GPU's own memory work at the same time, and arithmetic hides either as far as it lasts.
    """
    streamed_s = (
        offload.fraction * weight_bytes(model, config.precision) / config.gpus_per_replica / offload.bytes_per_s
    )
    return replace(steps, dense_read_s=max(steps.dense_read_s, streamed_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """Speculative decoding: drafted tokens are checked all at once, up to the first wrong one."""

    n_tokens: int
    acceptance: float
    """Probability that a drafted token is right, given that those before it were."""

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens per step: (1 - a^(k + 1)) / (1 - a) (Leviathan et al., ICML 2023).

        Examples
        --------
        >>> Drafting(n_tokens=1, acceptance=0.5).tokens_per_step
        1.5
        """
        if self.acceptance >= 1.0:
            return self.n_tokens + 1.0
        return (1.0 - self.acceptance ** (self.n_tokens + 1)) / (1.0 - self.acceptance)


def drafted_steps(steps: StepModel, drafting: Drafting) -> StepModel:
    """Return the steps that check `n_tokens` more per sequence; the draft's own cost is left out."""
    more = drafting.n_tokens * (steps.linear_s_per_token + steps.head_s_per_sequence + steps.communication_s_per_token)
    return replace(steps, overhead_s_per_sequence=steps.overhead_s_per_sequence + more / steps.stages)
