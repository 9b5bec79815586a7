"""What a journal says: the profile's rows, and what is known of every size and of the mix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.errors import Where
from planner.files.slo import SLO_SEPARATOR, slo_text
from planner.profilers.endpoint.search import share_interval
from planner.profilers.endpoint.session import MIX, full_load_rps, mix_shares, search_so_far
from planner.profilers.schema import UNDER_SLO, MeasuredPoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from planner.domain.slo import Slo
    from planner.profilers.endpoint.journal import Baseline, Journal, RunRecord
    from planner.profilers.endpoint.schedule import Size
    from planner.profilers.endpoint.session import Settings

TOOL = "gpuplan"
SOURCE = "gpuplan profile endpoint"
LENGTH_TOLERANCE = 0.01
"""Sizes that the server counts within this part of the asked ones are recorded as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What the server runs on, as the user says: recorded in every row."""

    model: str
    """Name in the model library."""
    gpu: str
    tensor_parallel: int
    pipeline_parallel: int
    engine: str
    engine_version: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeResult:
    """What is known of one size."""

    size: Size
    rate_rps: float
    """Largest rate that held the objectives; 0 = none did."""
    fails_rps: float
    """Smallest rate that failed; infinite = none did."""
    is_closed: bool
    """The search is over: both are as near each other as was asked, or the objectives cannot be met."""
    reason: str
    """What failed beyond the rate; why nothing holds where the rate is 0; "" = not known."""
    n_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MixResult:
    """The largest rate of all sizes mixed, as the sum of their load fractions: 1 if load adds up."""

    shares: Mapping[Size, float]
    rate_rps: float
    fails_rps: float
    load_sum: float
    """Sum of the sizes' rates over their own largest ones, at the largest rate of the mix that held."""
    load_sum_fails: float
    """The same at the smallest rate that failed."""
    is_closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that a measurement has found so far."""

    points: tuple[MeasuredPoint, ...]
    sizes: tuple[SizeResult, ...]
    unmeasured: tuple[Size, ...]
    """Sizes that nothing is known of: the budget or an error came first."""
    mix: MixResult | None
    spent_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes and the mix as JSON holds them."""
        return {
            "sizes": [
                {
                    "input_tokens": one.size.input_tokens,
                    "output_tokens": one.size.output_tokens,
                    "rate_rps": one.rate_rps,
                    "fails_rps": _finite(one.fails_rps),
                    "closed": one.is_closed,
                    "reason": one.reason,
                    "runs": one.n_runs,
                }
                for one in self.sizes
            ],
            "unmeasured": [str(size) for size in self.unmeasured],
            "mix": None
            if self.mix is None
            else {
                "shares": {str(size): share for size, share in self.mix.shares.items()},
                "rate_rps": self.mix.rate_rps,
                "fails_rps": _finite(self.mix.fails_rps),
                "load_sum": self.mix.load_sum,
                "load_sum_fails": _finite(self.mix.load_sum_fails),
                "closed": self.mix.is_closed,
            },
            "spent_s": self.spent_s,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def profile(journal: Journal, settings: Settings, replica: Replica, *, version: str, as_of: date) -> Profile:
    """Return what a journal says of the sizes asked for.

    Parameters
    ----------
    version : of gpuplan.
    """
    row = _Rows(settings.slos, settings.confidence, replica, version, as_of, journal.path.name)
    points: list[MeasuredPoint] = []
    sizes: list[SizeResult] = []
    for size in sorted(settings.sizes):
        baseline, runs = journal.baseline(str(size)), journal.runs(str(size))
        if baseline is None or not (runs or baseline.unreachable):
            continue
        found = _size_result(size, baseline, runs, settings.resolution)
        sizes.append(found)
        points += row.points(size, found, runs)
    mix = _mix(journal, settings, {one.size: one.rate_rps for one in sizes if one.rate_rps})
    if mix is not None:
        points += row.mix_points(mix, journal.runs(MIX))
    known = {one.size for one in sizes}
    return Profile(
        points=tuple(points),
        sizes=tuple(sizes),
        unmeasured=tuple(size for size in settings.sizes if size not in known),
        mix=mix,
        spent_s=journal.spent_s,
    )


def _size_result(size: Size, baseline: Baseline, runs: Sequence[RunRecord], resolution: float) -> SizeResult:
    search = search_so_far(baseline, runs, resolution)
    failed = [one for one in runs if not one.holds and one.rate_rps == search.fails_rps]
    return SizeResult(
        size=size,
        rate_rps=search.holds_rps,
        fails_rps=search.fails_rps,
        is_closed=bool(baseline.unreachable) or search.is_closed,
        reason=baseline.unreachable or (failed[-1].reason if failed else ""),
        n_runs=len(runs),
    )


def _mix(journal: Journal, settings: Settings, rates_rps: Mapping[Size, float]) -> MixResult | None:
    baseline = journal.baseline(MIX)
    if baseline is None or len(rates_rps) < 2:
        return None
    search = search_so_far(baseline, journal.runs(MIX), settings.resolution)
    shares = mix_shares(rates_rps, settings.weights)
    full_rps = full_load_rps(rates_rps, shares)
    if not search.holds_rps or not math.isclose(full_rps, baseline.start_rps, rel_tol=1e-6):
        return None  # nothing held, or sizes have been added since it was measured
    return MixResult(
        shares=shares,
        rate_rps=search.holds_rps,
        fails_rps=search.fails_rps,
        load_sum=search.holds_rps / full_rps,
        load_sum_fails=search.fails_rps / full_rps,
        is_closed=search.is_closed,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    slos: Sequence[Slo]
    confidence: float
    replica: Replica
    version: str
    as_of: date
    journal: str

    def points(self, size: Size, found: SizeResult, runs: Sequence[RunRecord]) -> Iterator[MeasuredPoint]:
        """Yield the row of the largest rate, and those of smaller ones that held, as they are steady states too."""
        if not found.rate_rps:
            return
        held = sorted((one for one in runs if one.holds and one.rate_rps <= found.rate_rps), key=lambda o: -o.rate_rps)
        best = held[0]
        tokens = (_asked(best.prompt_tokens, size.input_tokens), _asked(best.output_tokens, size.output_tokens))
        until = f"fails at {found.fails_rps:.4g}" if math.isfinite(found.fails_rps) else "no failing rate was reached"
        why = f" ({found.reason})" if found.reason else ""
        is_as_asked = tokens == (size.input_tokens, size.output_tokens)
        dist = "fixed" if is_as_asked else f"mean of what came; {size} was asked for"
        best_notes = f"{self._evidence(best)}; {until}{why}{'' if found.is_closed else '; search not finished'}"
        yield self._point(best, UNDER_SLO, tokens, dist, best_notes)
        for one in held[1:]:
            if one.rate_rps < best.rate_rps:
                yield self._point(one, "request_rate", tokens, dist, self._evidence(one))

    def mix_points(self, mix: MixResult, runs: Sequence[RunRecord]) -> Iterator[MeasuredPoint]:
        """Yield the row of the mix: no plan reads it as a size, but it says whether load adds up."""
        for one in runs:
            if one.holds and one.rate_rps == mix.rate_rps:
                parts = ", ".join(f"{size} {share:.1%}" for size, share in mix.shares.items())
                notes = f"the sizes' load fractions sum to {mix.load_sum:.3f}"
                if math.isfinite(mix.load_sum_fails):
                    notes += f"; fails at {mix.load_sum_fails:.3f}"
                tokens = (one.prompt_tokens, one.output_tokens)
                yield self._point(one, "request_rate", tokens, f"mix of {parts}", f"{notes}; {self._evidence(one)}")
                return

    def _evidence(self, run: RunRecord) -> str:
        """Return how sure it is that a rate holds, with the exact intervals of the shares beyond the bounds."""
        parts = []
        for slo, n_beyond in run.beyond.items():
            _, high = share_interval(n_beyond, run.n_judged, self.confidence)
            parts.append(f"{slo}: {n_beyond} of {run.n_judged} beyond (at most {high:.2%})")
        sure = f"{self.confidence:.0%} confidence" if run.is_sure else "not sure: the run was cut at its longest"
        return "; ".join([*parts, sure, *_server_notes(run)])

    def _point(self, run: RunRecord, kind: str, tokens: tuple[float, float], dist: str, notes: str) -> MeasuredPoint:
        replica = self.replica
        return MeasuredPoint(
            model=replica.model,
            gpu=replica.gpu,
            tensor_parallel=replica.tensor_parallel,
            pipeline_parallel=replica.pipeline_parallel,
            engine=replica.engine,
            engine_version=replica.engine_version,
            precision=replica.precision,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            load_kind=kind,
            load=run.rate_rps,
            rate_rps=run.rate_rps,
            output_tokens_per_s=run.rate_rps * tokens[1],
            ttft_s=run.ttft_s,
            tpot_s=run.tpot_s,
            e2e_s=run.e2e_s,
            as_of=self.as_of,
            source=SOURCE,
            source_ref=self.journal,
            where=Where(),
            length_dist=dist,
            slo=SLO_SEPARATOR.join(map(slo_text, self.slos)) if kind == UNDER_SLO else "",
            tool=TOOL,
            tool_version=self.version,
            notes=notes,
        )


def _server_notes(run: RunRecord) -> Iterator[str]:
    server = run.server
    if "kv_usage_fraction" in server:
        yield f"KV memory {server['kv_usage_fraction']:.0%} at most"
    if "n_waiting" in server:
        yield f"queue {server['n_waiting']:.0f} at most"
    if "n_preemptions" in server:
        yield f"{server['n_preemptions']:.0f} preemptions"
    if server.get("n_cached_tokens"):
        yield f"{server['n_cached_tokens']:.0f} prompt tokens came from the prefix cache"


def _asked(counted: float, asked: int) -> float:
    return float(asked) if abs(counted - asked) <= LENGTH_TOLERANCE * asked else round(counted, 1)
