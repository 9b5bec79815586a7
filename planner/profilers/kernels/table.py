"""The calibrated step-time table: a whole model's steps put together from its timed kernels, and how far off it is.

Between timed sizes, times are interpolated in logarithms; beyond them the table says nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.profilers.kernels.fit import kernel_s, layer_points, layers_s
from planner.profilers.kernels.shapes import Kernel, KernelKind
from planner.profilers.roofline import prefill_attention_flops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.model import ModelArchitecture
    from planner.profilers.kernels.fit import LayerPoint, Rates
    from planner.profilers.kernels.run import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the whole model on the GPUs of a replica; or a whole prompt, in as many steps as it takes."""

    phase: str
    """"decode" or "prefill"."""
    number_format: str
    sequences: int
    tokens: int
    """Cached tokens of each sequence (decode), or the prompt's length."""
    table_s: float
    """From the timed kernels; an engine's own overhead is not in it."""
    roofline_s: float | None
    """The same from the fitted rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutError:
    """How far the table and the fitted rates are off at sizes that neither has seen, as parts of the measured time."""

    part: str
    n_shapes: int
    table_median: float | None
    table_worst: float | None
    roofline_median: float | None
    roofline_worst: float | None


def interpolate(curve: Mapping[float, float], at: float) -> float | None:
    """Return the value of `curve` at `at`, by straight lines in logarithms; None outside of what it spans.

    Examples
    --------
    >>> round(interpolate({1.0: 1.0, 100.0: 100.0}, 10.0), 6)
    10.0
    """
    sizes = sorted(curve)
    if not sizes or not sizes[0] <= at <= sizes[-1]:
        return None
    return math.exp(float(np.interp(math.log(at), np.log(sizes), np.log([curve[size] for size in sizes]))))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """Timed parts of a step, each a curve over its size; seconds for the whole model."""

    layers: Mapping[float, float]
    """By tokens."""
    head: Mapping[float, float]
    """By sequences."""
    prefill_s_per_flop: Mapping[float, float]
    """By prompt length, on one GPU."""
    decode: tuple[tuple[float, Mapping[float, Mapping[float, float]]], ...]
    """For each kind of attention: its window (infinity = none), and seconds by sequences and cached tokens."""
    reduces: Mapping[float, float]
    """All-reduces of all layers by tokens; {} over one GPU."""

    def decode_attention_s(self, sequences: float, context_tokens: float) -> float | None:
        """Return the attention of all layers for `sequences` with `context_tokens` each; None where not timed."""
        total = 0.0
        for window, by_batch in self.decode:
            seen = min(context_tokens, window)
            curve = {
                batch: seconds
                for batch, by_context in by_batch.items()
                if (seconds := interpolate(by_context, seen)) is not None
            }
            part = interpolate(curve, sequences)
            if part is None:
                return None
            total += part
        return total


def step_table(outcomes: Sequence[Outcome], number_format: str, *, tensor_parallel: int) -> StepTable:
    """Return the table of a model whose layers multiply in `number_format`, from all but the shapes held back."""
    kept = [outcome for outcome in outcomes if not outcome.kernel.is_check]
    timed = [(outcome.kernel, outcome.timing.median_s) for outcome in kept if outcome.timing is not None]
    prefill: dict[float, list[tuple[float, float]]] = defaultdict(list)
    roles = {outcome.kernel.role for outcome in kept if outcome.kernel.kind is KernelKind.DECODE_ATTENTION}
    decode: dict[str, dict[float, dict[float, float]]] = {role: defaultdict(dict) for role in sorted(roles)}
    for kernel, seconds in timed:
        if kernel.kind is KernelKind.PREFILL_ATTENTION:
            prefill[kernel.tokens].append((seconds, kernel.flops))
        elif kernel.kind is KernelKind.DECODE_ATTENTION:
            decode[kernel.role][kernel.batch][kernel.context_tokens] = kernel.count * seconds
    return StepTable(
        layers={point.tokens: point.seconds for point in layer_points(kept, number_format, has_experts=True)},
        head={kernel.tokens: seconds for kernel, seconds in timed if kernel.kind is KernelKind.HEAD},
        prefill_s_per_flop={
            tokens: sum(seconds for seconds, _ in found) / sum(flops for _, flops in found)
            for tokens, found in prefill.items()
        },
        decode=tuple((_window(role), by_batch) for role, by_batch in decode.items()),
        reduces={
            kernel.tokens: kernel.count * seconds
            for kernel, seconds in timed
            if kernel.kind is KernelKind.ALL_REDUCE and kernel.batch == tensor_parallel
        },
    )


def whole_formats(outcomes: Iterable[Outcome], formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats in which all layers can be timed: torch multiplies a batch of experts in bf16 only."""
    has_experts = any(outcome.kernel.kind is KernelKind.EXPERTS for outcome in outcomes)
    return tuple(name for name in formats if name == "bf16" or not has_experts)


def _window(role: str) -> float:
    last = role.rsplit("-", 1)[-1]
    return float(last) if last.isdecimal() else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class _Assembly:
    """What steps are put together from."""

    model: ModelArchitecture
    outcomes: tuple[Outcome, ...]
    rates: Rates
    number_format: str
    tensor_parallel: int
    table: StepTable
    points: Mapping[int, LayerPoint]
    """Passes through the layers by tokens, for the fitted rates."""

    def decode(self, sequences: int, context_tokens: int) -> Step | None:
        """Return a step in which all of `sequences` decode; None if a part was not timed."""
        parts = [
            interpolate(self.table.layers, sequences),
            interpolate(self.table.head, sequences),
            self.table.decode_attention_s(sequences, context_tokens),
            *self._reduces(sequences),
        ]
        seconds = _sum(parts)
        if seconds is None:
            return None
        return Step(
            phase="decode",
            number_format=self.number_format,
            sequences=sequences,
            tokens=context_tokens,
            table_s=seconds,
            roofline_s=self._roofline_s(sequences, self._rest(sequences, sequences, context_tokens)),
        )

    def prompt(self, length: int) -> Step | None:
        """Return a whole prompt, cut into steps of the most tokens that were timed; None if a part was not timed."""
        most = int(max(self.table.layers, default=length))
        chunks = [most] * (length // most) + ([length % most] if length % most else [])
        flops = float(prefill_attention_flops(self.model, np.array([length], dtype=np.float64))[0])
        flops /= self.tensor_parallel
        parts = [interpolate(self.table.head, 1), flops * self.table.prefill_s_per_flop[length]]
        for tokens in chunks:
            parts += [interpolate(self.table.layers, tokens), *self._reduces(tokens)]
        seconds = _sum(parts)
        if seconds is None:
            return None
        by_rates: list[float | None] = []
        for number, tokens in enumerate(chunks):
            kernels = [kernel for kernel in self._rest(tokens, 1, None) if number == 0 or not _is_head(kernel)]
            by_rates.append(self._roofline_s(tokens, kernels))
        rate = self.rates.attention_flops_per_s
        by_rates.append(None if rate is None else flops / rate)
        return Step(
            phase="prefill",
            number_format=self.number_format,
            sequences=1,
            tokens=length,
            table_s=seconds,
            roofline_s=_sum(by_rates),
        )

    def _reduces(self, tokens: float) -> list[float | None]:
        return [interpolate(self.table.reduces, tokens)] if self.tensor_parallel > 1 else []

    def _rest(self, tokens: int, sequences: int, context_tokens: int | None) -> list[Kernel]:
        """Return the kernels of a step besides its layers; without attention where `context_tokens` is None."""
        roles: dict[str, Kernel] = {}
        for outcome in self.outcomes:
            kernel = outcome.kernel
            if _is_head(kernel):
                roles[kernel.role] = replace(kernel, tokens=sequences)
            elif kernel.kind is KernelKind.ALL_REDUCE and kernel.batch == self.tensor_parallel:
                roles[kernel.role] = replace(kernel, tokens=tokens)
            elif kernel.kind is KernelKind.DECODE_ATTENTION and context_tokens is not None:
                seen = int(min(context_tokens, _window(kernel.role)))
                roles[kernel.role] = replace(kernel, batch=sequences, context_tokens=seen)
        return list(roles.values())

    def _roofline_s(self, tokens: int, kernels: Iterable[Kernel]) -> float | None:
        point = self.points.get(tokens)
        parts = [None if point is None else layers_s(point, self.rates)]
        for kernel in kernels:
            seconds = kernel_s(kernel, self.rates)
            parts.append(None if seconds is None else kernel.count * seconds)
        return _sum(parts)


def _sum(parts: Sequence[float | None]) -> float | None:
    """Return the sum; None if a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _is_head(kernel: Kernel) -> bool:
    return kernel.kind is KernelKind.HEAD


def steps(
    model: ModelArchitecture, outcomes: Sequence[Outcome], rates: Rates, *, number_format: str, tensor_parallel: int
) -> tuple[Step, ...]:
    """Return the model's steps at the timed sizes: decoding by sequences and context, and whole prompts."""
    points = layer_points(outcomes, number_format, has_experts=True)
    assembly = _Assembly(
        model=model,
        outcomes=tuple(outcomes),
        rates=rates,
        number_format=number_format,
        tensor_parallel=tensor_parallel,
        table=step_table(outcomes, number_format, tensor_parallel=tensor_parallel),
        points={point.tokens: point for point in points},
    )
    sizes = {
        (outcome.kernel.batch, outcome.kernel.context_tokens)
        for outcome in outcomes
        if outcome.kernel.kind is KernelKind.DECODE_ATTENTION and not outcome.kernel.is_check
    }
    found = [assembly.decode(sequences, context) for sequences, context in sorted(sizes)]
    found += [assembly.prompt(int(length)) for length in sorted(assembly.table.prefill_s_per_flop)]
    return tuple(step for step in found if step is not None)


def left_out_errors(
    outcomes: Sequence[Outcome], rates: Rates, *, formats: Sequence[str], tensor_parallel: int
) -> tuple[LeftOutError, ...]:
    """Return how far the table and the rates are off at the shapes that were held back, part by part."""
    errors = []
    for name in whole_formats(outcomes, formats):
        table = step_table(outcomes, name, tensor_parallel=tensor_parallel)
        points = [point for point in layer_points(outcomes, name, has_experts=True) if point.is_check]
        rows = [(point.seconds, interpolate(table.layers, point.tokens), layers_s(point, rates)) for point in points]
        errors.append(_error(f"layers in {name}", rows))
    tables: dict[int, StepTable] = {}  # all-reduces over each number of GPUs have a curve of their own
    for n_gpus in {tensor_parallel, *(outcome.kernel.batch for outcome in outcomes if _is_reduce(outcome))}:
        tables[n_gpus] = step_table(outcomes, "bf16", tensor_parallel=n_gpus)
    for kind in (KernelKind.HEAD, KernelKind.PREFILL_ATTENTION, KernelKind.DECODE_ATTENTION, KernelKind.ALL_REDUCE):
        rows = [
            (
                outcome.timing.median_s,
                _table_s(tables[outcome.kernel.batch if _is_reduce(outcome) else tensor_parallel], outcome.kernel),
                kernel_s(outcome.kernel, rates),
            )
            for outcome in outcomes
            if outcome.kernel.kind is kind and outcome.kernel.is_check and outcome.timing is not None
        ]
        errors.append(_error(kind.value, rows))
    return tuple(error for error in errors if error.n_shapes)


def _is_reduce(outcome: Outcome) -> bool:
    return outcome.kernel.kind is KernelKind.ALL_REDUCE


def _table_s(table: StepTable, kernel: Kernel) -> float | None:
    """Return what the table says of one call of a kernel."""
    if kernel.kind is KernelKind.HEAD:
        return interpolate(table.head, kernel.tokens)
    if kernel.kind is KernelKind.PREFILL_ATTENTION:
        per_flop = interpolate(table.prefill_s_per_flop, kernel.tokens)
        return None if per_flop is None else per_flop * kernel.flops
    if kernel.kind is KernelKind.ALL_REDUCE:
        total = interpolate(table.reduces, kernel.tokens)
        return None if total is None else total / kernel.count
    one = StepTable(
        layers={},
        head={},
        prefill_s_per_flop={},
        decode=tuple(item for item in table.decode if item[0] == _window(kernel.role)),
        reduces={},
    )
    total = one.decode_attention_s(kernel.batch, kernel.context_tokens)
    return None if total is None else total / kernel.count


def _error(part: str, rows: Sequence[tuple[float, float | None, float | None]]) -> LeftOutError:
    by_table = [abs(guess / seconds - 1.0) for seconds, guess, _ in rows if guess is not None]
    by_rates = [abs(guess / seconds - 1.0) for seconds, _, guess in rows if guess is not None]
    return LeftOutError(
        part=part,
        n_shapes=len(rows),
        table_median=statistics.median(by_table) if by_table else None,
        table_worst=max(by_table, default=None),
        roofline_median=statistics.median(by_rates) if by_rates else None,
        roofline_worst=max(by_rates, default=None),
    )
