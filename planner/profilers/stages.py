"""Prefill and decode on replicas of their own: what each stage's objectives are, and where its throughput comes from.

Both stages run the step model of the whole: a prefill replica never decodes, a decode replica never sees a prompt. An
objective that spans both stages is divided between them, so that each can be held by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.domain.provenance import Provenance, ProvenanceKind
from planner.domain.slo import Metric
from planner.profilers import floor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.hardware import EngineConfig, GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.roofline import Array

TTFT_OF_PREFILL = 0.8
"""Of a bound on TTFT: for the prefill replica and sending the KV cache. The rest is for receiving it, a slot and the
step of the first token."""
E2E_OF_PREFILL = (0.1, 0.3)
"""Of a bound on e2e, likewise; plans choose between these."""
STAGE_SOURCE = "roofline estimate of a stage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of serving on replicas of its own."""

    role: Role
    bytes_per_s: float
    """Network rate of one replica."""
    e2e_of_prefill: float | None = None
    """Of a bound on e2e; None = the service has none."""

    def slos(self, slos: Sequence[Slo]) -> tuple[Slo, ...]:
        """Return what the stage must hold so that `slos` hold for the whole."""
        return tuple(self._parts(slos))

    def _parts(self, slos: Sequence[Slo]) -> Iterator[Slo]:
        for slo in slos:
            if slo.metric is Metric.TPOT:
                if self.role is Role.DECODE:
                    yield slo
                continue
            of_prefill = TTFT_OF_PREFILL if slo.metric is Metric.TTFT else self.e2e_of_prefill or 0.0
            part = of_prefill if self.role is Role.PREFILL else 1.0 - of_prefill
            yield replace(slo, bound_s=slo.bound_s * part)

    @property
    def group(self) -> str:
        """What the two stages of a request must agree on besides weights and KV format."""
        return "" if self.e2e_of_prefill is None else f"{self.e2e_of_prefill:.0%} of e2e for prefill"


def e2e_parts(slos: Sequence[Slo]) -> tuple[float | None, ...]:
    """Return the ways to divide the bounds on e2e, if there are any."""
    return E2E_OF_PREFILL if any(slo.metric is Metric.E2E for slo in slos) else (None,)


def stage_provenance(role: Role, whole: Provenance) -> Provenance:
    """Return where a stage's throughput comes from, if that of whole requests comes from `whole`."""
    note = f"{role} apart: no measurement of disaggregated serving"
    if whole.kind is not ProvenanceKind.ESTIMATED:
        note += f"; steps as measured with both together ({whole.note})"
    return Provenance(kind=ProvenanceKind.ESTIMATED, source=STAGE_SOURCE, note=note)


def most_rps(
    role: Role, model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, *, size: tuple[float, float]
) -> float:
    """Return the largest rate of one stage that physics allows; `size`: input and output tokens."""
    prompt, output = size

    def bounds(input_tokens: float, output_tokens: float) -> tuple[float, float]:
        return floor.rate_bounds_rps(
            model,
            gpu,
            n_gpus=config.gpus_per_replica,
            precision=config.precision,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )

    if role is Role.PREFILL:
        return min(bounds(prompt, 1.0))
    return min(bounds(1.0, output)[0], bounds(prompt, output)[1])


def held_to_physics(
    rates: Array, stage: Stage, model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, *, sizes: Array
) -> Array:
    """Return a stage's rates, shape (buckets,), no larger than physics allows."""
    held = rates.copy()
    for index, (prompt, output) in enumerate(sizes.tolist()):
        size = (max(prompt, 1.0), max(output, 1.0))
        held[index] = min(held[index], most_rps(stage.role, model, gpu, config, size=size))
    return held
