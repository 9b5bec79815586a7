"""What the requests of one run show of its objectives: warm-up, steady state, and a sequential test for each.

Pure: it looks at requests and a time, and neither waits nor sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.slo import Metric, Slo
from planner.profilers.endpoint.schedule import BLOCK
from planner.profilers.endpoint.search import BernoulliTest, Verdict, clustering, mean_verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from planner.profilers.endpoint.records import Request

ALLOWED_UNANSWERED = 0.01
"""Share of the requests that may stay without an answer where every objective is on a mean, which such requests are
not part of. Objectives on a percentile count them as beyond their bound."""

WARM_UP_WINDOWS = (2, 10)
"""Warm-up lasts from so many to so many windows of `_window_s`; it ends once the number in service stands still."""

WINDOW_REQUESTS = 8
"""A window is as long as a request takes, and holds so many arrivals at least."""

OVERLOAD_SEEN = 0.05
"""An objective holds only once a rate this much too high would have shown. Waits grow by OVERLOAD_SEEN seconds in a
second then and reach the bound after t = (bound - time of a lone request) / OVERLOAD_SEEN; the run lasts until more
than the allowed share would be beyond it: t / (1 - share)."""

GROWTH_SHARE = 0.02
"""A backlog that takes up more than this share of the arrivals, and more than chance explains, is no steady state."""

MOST_TIMES_FEWEST = 4
"""A run is decided by what was seen, and marked as unsure, after so many times the requests that a clear case needs."""

FEWEST_TO_HOLD = BLOCK
"""Requests that an objective must have held for at least: queues build up slowly."""

NOISE = 3.0
"""Standard deviations that count as more than chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a run has shown."""

    verdict: Verdict
    is_sure: bool = True
    """The test decided; False: the run was cut at its longest and the plain share decided."""
    reason: str = ""
    """The objective that fails, and how; "" where all hold."""


@dataclass(slots=True)
class _Objective:
    """One objective and what the requests in order of arrival have shown of it."""

    slo: Slo
    test: BernoulliTest
    lone_s: float
    is_beyond: list[bool] = field(default_factory=list)
    values_s: list[float] = field(default_factory=list)
    """Of answered requests, in order."""


def is_beyond(request: Request, slo: Slo, now_s: float) -> bool | None:
    """Return whether a request is beyond an objective's bound; None = not known yet at `now_s`.

    A request that still waits is beyond the bound as soon as its age is. One that fails is beyond it.
    """
    if request.failure is not None:
        return True
    if (value := metric_s(request, slo.metric)) is not None:
        return value > slo.bound_s
    if request.is_answered:
        return False  # an answer of one token has no TPOT
    if slo.metric is Metric.TPOT:
        steps = request.size.output_tokens - 1
        late = request.first_s is not None and now_s - request.first_s > slo.bound_s * max(steps, 1)
    else:
        late = now_s - request.due_s > slo.bound_s
    return True if late else None


def metric_s(request: Request, metric: Metric) -> float | None:
    """Return a request's TTFT, TPOT or E2E in seconds; None = not known, or not yet."""
    if metric is Metric.TTFT:
        return request.ttft_s
    return request.tpot_s if metric is Metric.TPOT else request.e2e_s


class Monitor:
    """Judges one run of one rate, again and again while its requests come and go.

    Parameters
    ----------
    slos : the objectives; not empty.
    confidence : of each sequential test, in (0.5, 1).
    lone_s : time of a lone request by metric, in seconds.
    rate_rps : what is sent.
    """

    def __init__(self, slos: Sequence[Slo], *, confidence: float, lone_s: dict[Metric, float], rate_rps: float) -> None:
        self._confidence = confidence
        self._rate_rps = rate_rps
        self._lone_s = lone_s
        self._objectives = [_objective(slo, confidence, lone_s) for slo in slos]
        if all(slo.percentile is None for slo in slos):
            answered = Slo(metric=Metric.E2E, percentile=100.0 * (1.0 - ALLOWED_UNANSWERED), bound_s=math.inf)
            self._objectives.append(_objective(answered, confidence, lone_s))
        self.warm_s: float | None = None
        """Requests that are due before this are warm-up; None = the warm-up is not over."""
        self._taken: int = 0
        self._first: int = 0

    @property
    def n_judged(self) -> int:
        """Number of requests that have been judged by every objective."""
        return len(self._objectives[0].is_beyond)

    @property
    def n_longest(self) -> int:
        """Number of judged requests at which a run is decided whatever the tests say."""
        return MOST_TIMES_FEWEST * self.n_fewest

    @property
    def n_fewest(self) -> int:
        """Number of requests that a clear case needs."""
        return max(FEWEST_TO_HOLD, *(one.test.fewest for one in self._objectives))

    def beyond(self) -> list[tuple[Slo, int]]:
        """Return for each objective how many judged requests are beyond its bound."""
        return [(one.slo, sum(one.is_beyond)) for one in self._objectives if math.isfinite(one.slo.bound_s)]

    def judged(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Return the judged ones of a run's requests."""
        return requests[self._first : self._taken]

    def judge(self, requests: Sequence[Request], start_s: float, now_s: float, *, is_last: bool = False) -> Judgement:
        """Return what the requests of a run, in order of arrival, show at `now_s`.

        Parameters
        ----------
        start_s : when the run began.
        is_last : no more requests will come: decide by what was seen.
        """
        if self.warm_s is None and not self._warm_up(requests, start_s, now_s):
            if not is_last and not self._is_hopeless(requests, now_s):
                return Judgement(verdict=Verdict.OPEN)
            self._begin(requests, start_s)
        self._take(requests, now_s)
        return self._decide(requests, now_s, is_last=is_last)

    def _begin(self, requests: Sequence[Request], warm_s: float) -> None:
        self.warm_s = warm_s
        self._first = next((i for i, one in enumerate(requests) if one.due_s >= warm_s), len(requests))
        self._taken = self._first

    def _warm_up(self, requests: Sequence[Request], start_s: float, now_s: float) -> bool:
        """Return whether the warm-up is over: the mean number in service has stopped growing, or took too long to."""
        ends = [one.e2e_s for one in requests if one.e2e_s is not None]
        if not ends:
            return False
        window = max(float(np.mean(ends)), WINDOW_REQUESTS / self._rate_rps)
        least, most = WARM_UP_WINDOWS
        if now_s - start_s < least * window:
            return False
        before, last = (mean_in_service(requests, now_s - (i + 1) * window, now_s - i * window, now_s) for i in (1, 0))
        is_steady = last <= before * 1.1 + math.sqrt(2.0 * max(before, 1.0))
        if is_steady or now_s - start_s >= most * window:
            self._begin(requests, now_s)
            return True
        return False

    def _is_hopeless(self, requests: Sequence[Request], now_s: float) -> bool:
        """Return whether even during warm-up far too many requests are beyond a bound for any steady state to hold."""
        for one in self._objectives:
            found = [is_beyond(request, one.slo, now_s) for request in requests]
            known = [flag for flag in found if flag is not None]
            if len(known) >= WINDOW_REQUESTS * 2 and np.mean(known[len(known) // 2 :]) > (1.0 + one.test.allowed) / 2.0:
                return True
        return False

    def _take(self, requests: Sequence[Request], now_s: float) -> None:
        """Judge the requests whose fate is known, up to the first whose is not: skipping it would favour short ones."""
        while self._taken < len(requests):
            request = requests[self._taken]
            flags = [self._flag(one, request, now_s) for one in self._objectives]
            if any(flag is None for flag in flags):
                return
            for one, flag in zip(self._objectives, flags, strict=True):
                one.is_beyond.append(bool(flag))
                value = metric_s(request, one.slo.metric)
                if value is not None and request.failure is None:
                    one.values_s.append(value)
            self._taken += 1

    @staticmethod
    def _flag(one: _Objective, request: Request, now_s: float) -> bool | None:
        if one.slo.percentile is None and request.end_s is None:
            return None  # a mean needs the value, however large
        return is_beyond(request, one.slo, now_s)

    def _decide(self, requests: Sequence[Request], now_s: float, *, is_last: bool) -> Judgement:
        verdicts = [self._verdict(one) for one in self._objectives]
        for one, verdict in zip(self._objectives, verdicts, strict=True):
            if verdict is Verdict.FAILS:
                return Judgement(verdict=Verdict.FAILS, reason=_reason(one))
        is_sure = all(verdict is Verdict.HOLDS for verdict in verdicts)
        is_growing, is_long = self._is_growing(requests, now_s), self._is_long_enough(now_s)
        if is_sure and is_long and not is_growing and self.n_judged >= FEWEST_TO_HOLD:
            return Judgement(verdict=Verdict.HOLDS)
        if not is_last and not (is_long and self.n_judged >= self.n_longest):
            return Judgement(verdict=Verdict.OPEN)
        missed = [one for one in self._objectives if not _holds_plainly(one)]
        if missed or is_growing:
            reason = _reason(missed[0]) if missed else "the backlog grows: no steady state"
            return Judgement(verdict=Verdict.FAILS, is_sure=False, reason=reason)
        return Judgement(verdict=Verdict.HOLDS, is_sure=False)

    def _verdict(self, one: _Objective) -> Verdict:
        if one.slo.percentile is None:
            return mean_verdict(np.array(one.values_s), one.slo.bound_s, self._confidence)
        return one.test.verdict(len(one.is_beyond), sum(one.is_beyond), _clustering(one))

    def _is_long_enough(self, now_s: float) -> bool:
        span = now_s - (self.warm_s or 0.0)
        needed = [
            (one.slo.bound_s - one.lone_s) / OVERLOAD_SEEN / (1.0 - _share_to_see(one))
            for one in self._objectives
            if one.slo.metric is not Metric.TPOT and math.isfinite(one.slo.bound_s)
        ]
        return span >= max(needed, default=0.0)

    def _is_growing(self, requests: Sequence[Request], now_s: float) -> bool:
        """Return whether more requests came than were served, in the last against the first third, beyond chance."""
        start_s = self.warm_s or 0.0
        third = (now_s - start_s) / 3.0
        if third <= 0:
            return False
        first = mean_in_service(requests, start_s, start_s + third, now_s)
        last = mean_in_service(requests, now_s - third, now_s, now_s)
        arrived = self._rate_rps * 2.0 * third
        return last - first > max(GROWTH_SHARE * arrived, NOISE * math.sqrt(2.0 * max(first, 1.0)))


def _objective(slo: Slo, confidence: float, lone_s: dict[Metric, float]) -> _Objective:
    allowed = ALLOWED_UNANSWERED if slo.percentile is None else 1.0 - slo.percentile / 100.0
    return _Objective(slo, BernoulliTest(allowed, confidence), lone_s.get(slo.metric, 0.0))


def _share_to_see(one: _Objective) -> float:
    """Return which share of a run of growing waits must be beyond the bound to show; a mean takes twice as long."""
    return 0.5 if one.slo.percentile is None else one.test.bad


def _clustering(one: _Objective) -> float:
    """Return how far the requests near the bound come in clusters, which tell less than as many independent ones.

    Near is the upper tenth of what was seen, if it reaches half of the bound: clusters far from it do not matter.
    """
    values = np.array(one.values_s)
    if len(values) < 2:
        return clustering(one.is_beyond)
    near_s = max(float(np.quantile(values, 0.9)), one.slo.bound_s / 2.0)
    return max(clustering(one.is_beyond), clustering(values > near_s))


def _holds_plainly(one: _Objective) -> bool:
    if one.slo.percentile is None:
        return bool(one.values_s) and float(np.mean(one.values_s)) <= one.slo.bound_s
    return bool(one.is_beyond) and sum(one.is_beyond) <= one.test.allowed * len(one.is_beyond)


def _reason(one: _Objective) -> str:
    if one.slo.percentile is None:
        mean = float(np.mean(one.values_s)) if one.values_s else math.inf
        return f"{one.slo}: the mean is {mean:.4g} s"
    if math.isinf(one.slo.bound_s):
        return f"{sum(one.is_beyond)} of {len(one.is_beyond)} requests were not answered"
    return f"{one.slo}: {sum(one.is_beyond)} of {len(one.is_beyond)} requests beyond the bound"


def mean_in_service(requests: Sequence[Request], start_s: float, end_s: float, now_s: float) -> float:
    """Return the mean number of requests in service between two times; those without an end are so until `now_s`."""
    if end_s <= start_s or not requests:
        return 0.0
    begins: NDArray[np.float64] = np.array([one.due_s for one in requests])
    ends = np.array([now_s if one.end_s is None else one.end_s for one in requests])
    overlap = np.minimum(ends, end_s) - np.maximum(begins, start_s)
    return float(np.maximum(overlap, 0.0).sum()) / (end_s - start_s)
