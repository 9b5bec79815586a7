"""A user's own few points: how far they move the parameters of that GPU and engine, and how sure that makes estimates.

Three points cannot tell a dozen parameters. So each starts from what is believed of it, and moves as far as the
points outweigh that: how much GPUs and engines differ, and how far points of one model lie from estimates that are
right for the others, is known (profiles/calibration.csv).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.planning.calibration import Fitted, Measurement, estimates, median_error
from planner.profilers.efficiency import engine_family
from planner.profilers.eras import engine_scopes
from planner.profilers.fitting import Belief, Scatter, believe
from planner.profilers.roofline import math_format
from planner.profilers.variation import ENGINE_PARAMETERS, LINK_PARAMETERS, known_sd, load_variation, new_sd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.planning.estimate_points import Question
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.roofline import Array

THROUGHPUT, TTFT, TPOT = range(3)

MOST_DIRECTIONS = 4
"""In so many ways the fitted parameters may all be off together; the ways that matter least are dropped."""

LIKELIEST_SIZES = ((128.0, 1024.0), (1024.0, 256.0), (8192.0, 128.0))
LIKELIEST_BATCHES = (1.0, 64.0)
"""Input and output tokens, and batches, at which it is judged which ways matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated(Fitted):
    """Parameters after a user's own points."""

    odds: float
    """Probability that nothing but scatter sets the points apart from the estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The parameters of one GPU or engine that move together."""

    kind: str
    """"gpu" or "engine"."""
    is_known: bool
    starts: dict[tuple[str, str], float]

    def loadings(self, *, is_wide: bool) -> Array:
        """Return how the parameters' logarithms follow from independent standard normal numbers.

        The first number makes all of it faster or slower; of the others each moves one parameter.
        """
        spreads = load_variation()
        sd = new_sd(self.kind) if is_wide else known_sd(self.kind)
        own: Array = np.array(
            [spreads["spread", "gpu_rates" if self.kind == "gpu" else name] for name, _ in self.starts]
        )
        speed = np.array([-1.0 if name.endswith("_s") or "latency" in name else 1.0 for name, _ in self.starts])
        found: Array = np.column_stack([sd * speed, np.diag(own * sd / new_sd(self.kind))])
        return found


def fit_own(measurements: Sequence[Measurement], params: EstimatorParams) -> Recalibrated:
    """Return the parameters after a user's own few measurements, and how far each of them may still be off.

    Of every GPU its matrix rate, bandwidths and attention move, under the GPU's own name; of every engine its factors,
    overheads and all-reduces, on GPUs of that architecture. Nothing else does. Three hypotheses are weighed by how
    likely they make the points: nothing is off but scatter (even odds beforehand); GPU and engine are off as known ones
    are, or new ones where they are; both are off as new ones are.

    Raises
    ------
    ValueError: if there is nothing to fit to.
    """
    if not measurements:
        msg = "there are no measurements to fit to"
        raise ValueError(msg)
    questions = [measurement.question for measurement in measurements]
    measured = np.log(np.array([measurement.values for measurement in measurements]))
    parts = _parts(questions, params)
    starts = {key: value for part in parts for key, value in part.starts.items()}
    logs = np.log(list(starts.values()))

    def moved(shifts: Array) -> EstimatorParams:
        values = dict(zip(starts, np.exp(logs + shifts).tolist(), strict=True))
        return replace(params, table={**params.table, **values}, own=params.own | values.keys())

    def all_shortfalls(shifts: Array) -> Array:
        found: Array = measured - np.log(np.maximum(estimates(questions, moved(shifts)), 1e-9))
        return found

    stays = np.zeros(len(starts))
    is_known = np.isfinite(all_shortfalls(stays))
    scatter = _scatter(questions, is_known)
    hypotheses = [np.zeros((len(starts), 0)), _loadings(parts, is_wide=False)]
    if any(part.is_known for part in parts):
        hypotheses.append(_loadings(parts, is_wide=True))
    beliefs = [believe(lambda shifts: all_shortfalls(shifts)[is_known], each, scatter) for each in hypotheses]
    odds = _odds(beliefs)
    shifts = sum((p * belief.shifts for p, belief in zip(odds, beliefs, strict=True)), stays)
    covariance = _spread(beliefs, odds, shifts)
    after = moved(shifts)
    spreads = _directions(questions, shifts, covariance, moved)
    return Recalibrated(
        params=replace(after, spreads={**params.spreads, **dict(zip(starts, spreads, strict=True))}),
        values=dict(zip(starts, np.exp(logs + shifts).tolist(), strict=True)),
        n_values=int(is_known.sum()),
        before=median_error(all_shortfalls(stays)[is_known]),
        after=median_error(all_shortfalls(shifts)[is_known]),
        odds=float(odds[0]),
    )


def _parts(questions: Sequence[Question], params: EstimatorParams) -> list[_Part]:
    found: dict[tuple[str, str], _Part] = {}
    for question in questions:
        gpu, config = question.gpu, question.config
        rates = (
            f"gemm_fraction_{math_format(config.precision, gpu)}",
            "bandwidth_fraction",
            "kv_bandwidth_fraction",
            "attention_fraction",
        )
        empty = _Part(kind="gpu", is_known=params.is_fitted(gpu), starts={})
        part = found.setdefault(("gpu", gpu.name), empty)
        for name in rates:
            part.starts[name, gpu.name.lower()] = params.value(name, gpu.name, gpu.architecture, gpu.vendor)
        scopes = engine_scopes(engine_family(config.engine), config.engine_version, gpu.vendor, gpu.architecture)
        is_fitted = params.is_release_fitted(config.engine, config.engine_version)
        empty = _Part(kind="engine", is_known=is_fitted and params.is_engine_fitted(config.engine), starts={})
        part = found.setdefault(("engine", scopes[0]), empty)
        for name in (*ENGINE_PARAMETERS, *LINK_PARAMETERS):
            start = params.value(name, *scopes)
            if start > 0:
                part.starts[name, scopes[0]] = start
    return list(found.values())


def _loadings(parts: Sequence[_Part], *, is_wide: bool) -> Array:
    blocks = [part.loadings(is_wide=is_wide or not part.is_known) for part in parts]
    whole = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


def _scatter(questions: Sequence[Question], is_known: Array) -> Scatter:
    """Return how far measured values lie from right estimates; values in the order of `is_known`, shape (points, 3)."""
    table = load_variation()
    own: list[float] = []
    groups: list[dict[tuple[object, ...], float]] = []
    for index, metric in np.argwhere(is_known).tolist():
        question = questions[index]
        alone = "ttft_alone" if question.load_kind == "static_batch" else "ttft_loaded"
        own.append(table["scatter", alone if metric == TTFT else "point"])
        in_common: dict[tuple[object, ...], float] = {}
        in_common[question.model.name, question.config.tensor_parallel, metric] = table["scatter", "model"]
        if metric == TTFT:
            in_common["ttft",] = table["scatter", "ttft_all"]
        if metric == TPOT and is_known[index, THROUGHPUT]:
            in_common["tpot",] = table["scatter", "tpot_beside_throughput"]
        groups.append(in_common)
    shared = [[sum(sd * sd for key, sd in one.items() if key in other) for other in groups] for one in groups]
    return Scatter(own=np.array(own), shared=np.array(shared), freedom=table["tails", "freedom"])


def _odds(beliefs: Sequence[Belief]) -> Array:
    """Return the probability of each hypothesis; beforehand that of the first is a half, the others share the rest."""
    evidence = np.array([belief.log_evidence for belief in beliefs])
    odds = np.exp(evidence - evidence.max()) * np.array([1.0, *[1.0 / (len(beliefs) - 1)] * (len(beliefs) - 1)])
    found: Array = odds / odds.sum()
    return found


def _spread(beliefs: Sequence[Belief], odds: Array, shifts: Array) -> Array:
    """Return the covariance of the parameters' logarithms around their means.

    That of the hypotheses under which anything moves: that nothing is off at these points is no proof for others.
    """
    share = odds[1:] / odds[1:].sum()
    within = sum(
        (p * belief.covariance for p, belief in zip(share, beliefs[1:], strict=True)), 0.0 * beliefs[1].covariance
    )
    apart = [belief.shifts - shifts for belief in beliefs]
    between = sum((p * np.outer(gap, gap) for p, gap in zip(odds, apart, strict=True)), np.zeros_like(within))
    found: Array = within + between
    return found


def _directions(
    questions: Sequence[Question], shifts: Array, covariance: Array, moved: Callable[[Array], EstimatorParams]
) -> list[tuple[float, ...]]:
    """Return of each parameter by how much its logarithm moves along each of the ways in which all may still be off.

    Every way is one standard deviation long. They are those that change estimates most (singular vectors of the
    estimates' slopes), over short and long requests, small and large batches, one GPU and several.
    """
    asked = _typical(questions)
    at = np.log(np.maximum(estimates(asked, moved(shifts)), 1e-9)).ravel()
    steps = np.eye(len(shifts)) * SMALL_CHANGE
    slopes = np.stack(
        [
            (np.log(np.maximum(estimates(asked, moved(shifts + step)), 1e-9)).ravel() - at) / SMALL_CHANGE
            for step in steps
        ],
        axis=1,
    )
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    _, _, ways = np.linalg.svd(slopes[np.isfinite(slopes).all(axis=1)] @ root, full_matrices=False)
    return [tuple(row) for row in (root @ ways[:MOST_DIRECTIONS].T).tolist()]


SMALL_CHANGE = 0.02


def _typical(questions: Sequence[Question]) -> list[Question]:
    """Return static batches of the measured models, GPUs and engines that differ in size, batch and parallelism."""
    bases = {(q.model.name, q.gpu.name, q.config.engine, q.config.engine_version): q for q in questions}
    found = []
    for base in list(bases.values())[:MOST_BASES]:
        for ranks in {base.config.tensor_parallel, base.config.tensor_parallel * 2}:
            config = replace(base.config, tensor_parallel=ranks)
            found += [
                replace(
                    base, config=config, n_replicas=1.0, load_kind="static_batch", load=batch, input_tokens=size[0],
                    output_tokens=size[1],
                )
                for size in LIKELIEST_SIZES
                for batch in LIKELIEST_BATCHES
            ]  # fmt: skip
    return found


MOST_BASES = 4
