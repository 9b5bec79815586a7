"""A whole measurement: every size's baseline and search, then the mix; each finished part goes into the journal."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from planner.domain.slo import Metric
from planner.errors import MeasurementError
from planner.files.slo import slo_text
from planner.profilers.endpoint.client import Client
from planner.profilers.endpoint.dialect import Prompts, ask, fit_length, learn
from planner.profilers.endpoint.identify import served_models
from planner.profilers.endpoint.journal import Baseline, RunRecord
from planner.profilers.endpoint.load import Punctuality, allow_connections, latencies_s, patience, run_load
from planner.profilers.endpoint.metrics import summary
from planner.profilers.endpoint.records import FailureKind, Request
from planner.profilers.endpoint.search import RateSearch, Tried, Verdict
from planner.profilers.endpoint.verdict import OVERLOAD_SEEN, WARM_UP_WINDOWS, WINDOW_REQUESTS, Monitor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.slo import Slo
    from planner.profilers.endpoint.client import Connection
    from planner.profilers.endpoint.dialect import Dialect
    from planner.profilers.endpoint.journal import Journal
    from planner.profilers.endpoint.load import Run
    from planner.profilers.endpoint.schedule import Size

MIX = "mix"

LONE_REQUESTS = 5
"""Lone requests of a size, one after the other, after one that warms up; fewer if they take long, but two at least."""

LONE_ENOUGH_S = 20.0

BURST = 8
"""Requests sent at once to see what rate a search may start from, where nothing else says."""

BURST_SHARE = 0.7

LOWEST_LOAD = 0.02
"""Rate below which nothing is tried, times the time of a lone request: requests then hardly ever meet."""

TRIES = 3
"""Runs at one rate before a client that is too slow ends the measurement."""

HOPELESS_RATES = 2
"""Rates for all of which a client was too slow before the measurement ends."""

MOST_BROKEN_RUNS = 4
"""Runs of one size that failed for reasons that load does not explain before the measurement ends."""

SETTLED_FACTOR, SETTLED_SLACK_S = 2.0, 0.05
"""The server has settled once a lone request's TTFT is within this factor of what it was, and this much more."""

SETTLE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and how well."""

    connection: Connection
    model: str
    """As the server calls it."""
    sizes: tuple[Size, ...]
    """In the order in which they are measured."""
    weights: Mapping[Size, float] | None
    """Shares of demand by size; None = not known."""
    slos: tuple[Slo, ...]
    confidence: float
    resolution: float
    seed: int
    budget_s: float | None = None
    """Time after which no further run is begun, earlier sittings included; None = no end."""
    with_mix: bool = True
    replica: Mapping[str, Any] = field(default_factory=dict)
    """What the server runs on; recorded, and part of what a journal is checked against."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that decide results: a journal of others cannot be gone on with."""
        return {
            "url": self.connection.url,
            "model": self.model,
            "slos": [slo_text(slo) for slo in self.slos],
            "confidence": self.confidence,
            "resolution": self.resolution,
            "seed": self.seed,
            **self.replica,
        }


class Watcher(Protocol):
    """Is told how the measurement goes."""

    def part(self, subject: str, n_done: int, n_parts: int) -> None:
        """Take note that a size, or the mix, is begun."""

    def run(self, rate_rps: float, n_fewest: int, n_judged: int) -> None:
        """Take note of a run's progress."""

    def note(self, message: str) -> None:
        """Take note of something that the user should know."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A measurement under way."""

    settings: Settings
    journal: Journal
    watcher: Watcher
    estimates_rps: Mapping[Size, float] = field(default_factory=dict)
    """What an estimate says of sizes' largest rates, where there is one."""
    begun_s: float = field(default_factory=time.monotonic)
    _client: Client = field(init=False)
    _dialect: Dialect = field(init=False)
    _prompts: Prompts = field(init=False)
    _earlier_s: float = field(init=False, default=0.0)

    async def measure(self) -> None:
        """Measure what the journal does not hold yet, as far as the budget goes.

        Raises
        ------
        InputError: if the server cannot be reached, refuses the key or the model, or is not what the URL says.
        MeasurementError: if the server fails, or this client is too slow. What was finished is in the journal.
        """
        settings = self.settings
        self._earlier_s = self.journal.spent_s
        allow_connections()
        async with Client(settings.connection) as client:
            self._client = client
            await served_models(client, settings.model)
            self._dialect = await learn(client, settings.model, min(settings.sizes))
            self._prompts = Prompts(self._dialect, np.random.default_rng([settings.seed, 0]))
            for note in self._dialect.notes:
                self.watcher.note(f"Note: {note}.")
            n_parts = len(settings.sizes) + int(settings.with_mix and len(settings.sizes) > 1)
            for n_done, size in enumerate(settings.sizes):
                if self._is_finished(str(size)):
                    continue
                if self.journal.baseline(str(size)) is not None or self._has_time_for_part():
                    self.watcher.part(str(size), n_done, n_parts)
                    await self._measure_size(size)
            if n_parts > len(settings.sizes) and self._has_time_for_part():
                self.watcher.part(MIX, len(settings.sizes), n_parts)
                await self._measure_mix()

    @property
    def spent_s(self) -> float:
        """Time spent, earlier sittings included."""
        return self._earlier_s + time.monotonic() - self.begun_s

    def _left_s(self) -> float:
        return math.inf if self.settings.budget_s is None else self.settings.budget_s - self.spent_s

    def _has_time_for_part(self) -> bool:
        """Return whether a part as long as the mean finished one fits what is left of the budget."""
        if self.settings.budget_s is None or not self.journal.entries:
            return True
        finished = [str(size) for size in self.settings.sizes if self._is_finished(str(size))]
        return bool(finished) and self._left_s() > self.journal.spent_s / len(finished)

    def _is_finished(self, subject: str) -> bool:
        baseline = self.journal.baseline(subject)
        return baseline is not None and (bool(baseline.unreachable) or self._found(subject).is_closed)

    async def _measure_size(self, size: Size) -> None:
        baseline = self.journal.baseline(str(size))
        if baseline is None and (refusal := await self._refusal(size)):
            self.journal.add(_refused(size, refusal, self.journal.since_last_s()))
            return
        await fit_length(self._client, self._dialect, self._prompts, size)
        if baseline is None:
            baseline = await self._baseline(size)
            self.journal.add(baseline)
        if not baseline.unreachable:
            await self._search(baseline, {size: 1.0})

    async def _measure_mix(self) -> None:
        rates = {size: found.holds_rps for size in self.settings.sizes if (found := self._found(str(size))).holds_rps}
        if len(rates) < 2:
            return
        for size in rates:
            await fit_length(self._client, self._dialect, self._prompts, size)
        shares = mix_shares(rates, self.settings.weights)
        baseline = self.journal.baseline(MIX)
        if baseline is None:
            lone = [one for size in rates if (one := self.journal.baseline(str(size)))]
            parts = list(shares.values())
            baseline = Baseline(
                subject=MIX,
                ttft_s=min(one.ttft_s for one in lone),
                tpot_s=min(one.tpot_s for one in lone),
                e2e_s=min(one.e2e_s for one in lone),
                prompt_tokens=float(np.average([one.prompt_tokens for one in lone], weights=parts)),
                output_tokens=float(np.average([one.output_tokens for one in lone], weights=parts)),
                start_rps=full_load_rps(rates, shares),
                is_informed=True,
            )
            self.journal.add(baseline)
        await self._search(baseline, shares)

    def _found(self, subject: str) -> RateSearch:
        baseline = self.journal.baseline(subject)
        if baseline is None:
            return RateSearch(start_rps=1.0, resolution=self.settings.resolution)
        return search_so_far(baseline, self.journal.runs(subject), self.settings.resolution)

    # --- baselines ---------------------------------------------------------------------------------------------------

    async def _baseline(self, size: Size) -> Baseline:
        lone = [await self._lone(size)]
        begun_s = time.monotonic()
        lone = []
        while len(lone) < LONE_REQUESTS and (len(lone) < 2 or time.monotonic() - begun_s < LONE_ENOUGH_S):
            lone.append(await self._lone(size))
        found = {metric: latencies_s(lone, metric).get("median", 0.0) for metric in Metric}
        missed = [slo for slo in self.settings.slos if found[slo.metric] > slo.bound_s]
        e2e_s = found[Metric.E2E]
        start_rps, is_informed = 1.0 / e2e_s, False
        if not missed:
            start_rps, is_informed = await self._start(size, e2e_s)
        return Baseline(
            subject=str(size),
            ttft_s=found[Metric.TTFT],
            tpot_s=found[Metric.TPOT],
            e2e_s=e2e_s,
            prompt_tokens=_mean_prompt(lone, size),
            output_tokens=float(np.mean([one.output_tokens for one in lone])),
            start_rps=start_rps,
            is_informed=is_informed,
            unreachable="; ".join(f"{slo}: a lone request takes {found[slo.metric]:.4g} s" for slo in missed),
            spent_s=self.journal.since_last_s(),
        )

    async def _refusal(self, size: Size) -> str:
        """Return why the server refuses requests of a size, such as one beyond its context; "" = it does not."""
        request = await ask(self._client, self._dialect, self._prompts.prompt(size.input_tokens), size)
        if request.failure is not None and request.failure.kind is FailureKind.BAD_REQUEST:
            return request.failure.message
        return ""

    async def _lone(self, size: Size) -> Request:
        request = await ask(self._client, self._dialect, self._prompts.prompt(size.input_tokens), size)
        if request.failure is not None:
            raise request.failure.lost()
        return request

    async def _start(self, size: Size, e2e_s: float) -> tuple[float, bool]:
        """Return the rate that the search starts from, and whether a neighbour or an estimate says so.

        A neighbour's rate is scaled by the estimates of both sizes, else by the times of their lone requests.
        """
        known = [
            (other, found.holds_rps)
            for other in self.settings.sizes
            if other != size and (found := self._found(str(other))).holds_rps
        ]
        estimate = self.estimates_rps.get(size, 0.0)
        if known:
            other, rate_rps = min(known, key=lambda one: size.distance(one[0]))
            baseline = self.journal.baseline(str(other))
            if estimate and self.estimates_rps.get(other):
                return rate_rps * estimate / self.estimates_rps[other], True
            if baseline is not None:
                return rate_rps * baseline.e2e_s / e2e_s, True
        if estimate:
            return estimate, True
        begun_s = time.monotonic()
        burst = [Request(size=size, due_s=begun_s) for _ in range(BURST)]
        bodies = [self._prompts.body(size) for _ in burst]
        await asyncio.gather(
            *(self._client.send(self._dialect.path, body, one) for body, one in zip(bodies, burst, strict=True))
        )
        span_s = max([one.last_s - begun_s for one in burst if one.is_answered and one.last_s], default=0.0)
        n_answered = sum(one.is_answered for one in burst)
        return (BURST_SHARE * n_answered / span_s if span_s > 0 else 1.0 / e2e_s), False

    # --- searches ----------------------------------------------------------------------------------------------------

    async def _search(self, baseline: Baseline, shares: Mapping[Size, float]) -> None:
        search = search_so_far(baseline, self.journal.runs(baseline.subject), self.settings.resolution)
        too_fast: dict[float, Punctuality] = {}
        while not search.is_closed:
            rate_rps = search.next_rps()
            if self._expected_s(baseline, rate_rps) > self._left_s():
                self.watcher.note(f"{baseline.subject}: the budget ended before the rate was known as well as asked.")
                return
            found = await self._run(baseline, rate_rps, shares)
            if isinstance(found, Punctuality):  # not the server's limit: for this sitting only
                too_fast[rate_rps] = found
                search.record(Tried(rate_rps=rate_rps, holds=False))
                if len(too_fast) == len(search.tried) == HOPELESS_RATES:
                    break  # it is not the rate that makes this client late
                continue
            self.journal.add(found)
            search.record(_tried(found))
            self._check_broken(baseline.subject, found)
        if search.fails_rps in too_fast:
            held = f"{search.holds_rps:.4g} req/s hold, but " if search.holds_rps else ""
            raise MeasurementError(
                f"{baseline.subject}: {held}this client is too slow for {search.fails_rps:.4g} req/s:"
                f" {too_fast[search.fails_rps]}.",
                hint="Run it on a machine with an idle core, near the server; it goes on where it was.",
            )

    def _check_broken(self, subject: str, record: RunRecord) -> None:
        n_broken = sum(one.is_broken for one in self.journal.runs(subject))
        if record.is_broken and n_broken >= MOST_BROKEN_RUNS:
            raise MeasurementError(
                f"{subject}: requests failed in {n_broken} runs: {record.reason}",
                hint="See the server's log; what was measured is kept, and the same command goes on from there.",
            )

    def _monitor(self, baseline: Baseline, rate_rps: float) -> Monitor:
        lone_s = {Metric.TTFT: baseline.ttft_s, Metric.TPOT: baseline.tpot_s, Metric.E2E: baseline.e2e_s}
        return Monitor(self.settings.slos, confidence=self.settings.confidence, lone_s=lone_s, rate_rps=rate_rps)

    def _expected_s(self, baseline: Baseline, rate_rps: float) -> float:
        """Return how long a clear run would take."""
        window_s = max(baseline.e2e_s, WINDOW_REQUESTS / rate_rps)
        return WARM_UP_WINDOWS[0] * window_s + self._monitor(baseline, rate_rps).n_fewest / rate_rps

    def _longest_s(self, baseline: Baseline, rate_rps: float) -> float:
        """Return after how long a run is judged by what was seen: far longer than an undecided one takes."""
        monitor = self._monitor(baseline, rate_rps)
        slowest_s = 4.0 * max(slo.bound_s for slo in self.settings.slos) / OVERLOAD_SEEN
        window_s = max(baseline.e2e_s, WINDOW_REQUESTS / rate_rps)
        return 2.0 * (monitor.n_longest / rate_rps + slowest_s + WARM_UP_WINDOWS[1] * window_s)

    async def _run(self, baseline: Baseline, rate_rps: float, shares: Mapping[Size, float]) -> RunRecord | Punctuality:
        """Return a run at a rate; how late the client was, if it was too late in all of `TRIES` runs."""
        number = len(self.journal.runs(baseline.subject))
        allowed = patience(self.settings.slos, min(size.output_tokens for size in shares))
        for attempt in range(TRIES):
            seed = [self.settings.seed, *baseline.subject.encode(), number, attempt]
            monitor = self._monitor(baseline, rate_rps)
            tell = partial(self.watcher.run, rate_rps, monitor.n_fewest)
            run = await run_load(
                self._client,
                self._dialect,
                self._prompts,
                rate_rps=rate_rps,
                shares=shares,
                monitor=monitor,
                patience=allowed,
                longest_s=self._longest_s(baseline, rate_rps),
                rng=np.random.default_rng(seed),
                tell=tell,
            )
            await self._settle(baseline, min(shares))
            if run.punctuality.is_good:
                return self._record(baseline, run)
            self.watcher.note(f"{baseline.subject}: a run at {rate_rps:.4g} req/s does not count: {run.punctuality}.")
        return run.punctuality

    async def _settle(self, baseline: Baseline, size: Size) -> None:
        """Wait until a lone request is as fast as it was before any load.

        Raises
        ------
        MeasurementError: if the server answers no lone request any more.
        """
        end_s = time.monotonic() + SETTLE_LIMIT_S
        wait_s = 0.02
        while True:
            request = await self._lone(size)
            settled_s = SETTLED_FACTOR * baseline.ttft_s + SETTLED_SLACK_S
            if request.ttft_s is not None and request.ttft_s <= settled_s:
                return
            if time.monotonic() > end_s:
                self.watcher.note(
                    f"{baseline.subject}: {SETTLE_LIMIT_S:g} s after a run a lone request still took"
                    f" {request.ttft_s or 0.0:.3g} s to its first token, {baseline.ttft_s:.3g} s before."
                )
                return
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2.0, 5.0)

    def _record(self, baseline: Baseline, run: Run) -> RunRecord:
        judgement, judged = run.judgement, run.judged
        holds, reason = judgement.verdict is Verdict.HOLDS, judgement.reason
        if run.is_dead:
            holds = False
            reason = f"{sum(run.failures.values())} of {run.n_sent} requests failed: {_first_message(run)}"
        answered = [one for one in judged if one.is_answered]
        return RunRecord(
            subject=baseline.subject,
            rate_rps=run.rate_rps,
            holds=holds,
            is_sure=judgement.is_sure,
            reason=reason,
            n_judged=len(judged),
            n_sent=run.n_sent,
            served_rps=run.served_rps,
            span_s=run.span_s,
            beyond={str(slo): count for slo, count in run.beyond},
            ttft_s=latencies_s(judged, Metric.TTFT),
            tpot_s=latencies_s(judged, Metric.TPOT),
            e2e_s=latencies_s(judged, Metric.E2E),
            prompt_tokens=_mean_prompt(answered, None) or baseline.prompt_tokens,
            output_tokens=float(np.mean([one.output_tokens for one in answered])) if answered else 0.0,
            sent_late_s=run.punctuality.sent_late_s,
            failures=dict(run.failures),
            server=summary(run.states),
            is_broken=run.is_dead,
            spent_s=self.journal.since_last_s(),
        )


def _refused(size: Size, refusal: str, spent_s: float) -> Baseline:
    return Baseline(
        subject=str(size),
        ttft_s=0.0,
        tpot_s=0.0,
        e2e_s=0.0,
        prompt_tokens=0.0,
        output_tokens=0.0,
        start_rps=0.0,
        is_informed=False,
        unreachable=refusal,
        spent_s=spent_s,
    )


def _first_message(run: Run) -> str:
    return run.failure.message if run.failure is not None else ", ".join(run.failures)


def _mean_prompt(requests: Sequence[Request], size: Size | None) -> float:
    counts = [one.prompt_tokens for one in requests if one.prompt_tokens is not None]
    if counts:
        return float(np.mean(counts))
    return float(size.input_tokens) if size is not None else 0.0


def _tried(record: RunRecord) -> Tried:
    return Tried(rate_rps=record.rate_rps, holds=record.holds, served_rps=0.0 if record.holds else record.served_rps)


def search_so_far(baseline: Baseline, runs: Sequence[RunRecord], resolution: float) -> RateSearch:
    """Return the search of a size as its runs leave it."""
    search = RateSearch(
        start_rps=baseline.start_rps,
        resolution=resolution,
        is_informed=baseline.is_informed,
        lowest_rps=LOWEST_LOAD / baseline.e2e_s if baseline.e2e_s else 0.0,
    )
    for record in runs:
        search.record(_tried(record))
    return search


def mix_shares(rates_rps: Mapping[Size, float], weights: Mapping[Size, float] | None) -> dict[Size, float]:
    """Return each size's share of the requests of the mix: as demand has it, else so that all load the server alike."""
    parts = {size: rate if weights is None else weights.get(size, 0.0) for size, rate in rates_rps.items()}
    total = sum(parts.values())
    return {size: part / total for size, part in parts.items()}


def full_load_rps(rates_rps: Mapping[Size, float], shares: Mapping[Size, float]) -> float:
    """Return the rate of the mix at which the load fractions, each size's rate over its largest one, sum to 1."""
    return 1.0 / sum(share / rates_rps[size] for size, share in shares.items())
