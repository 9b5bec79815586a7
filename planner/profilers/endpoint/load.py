"""Sends one run's requests at their times, whatever comes back, until the run is judged.

Open loop: a request is sent when it is due, not when another one has ended. A client that cannot keep up would measure
itself: how late it sends and how late it reads are watched, and such a run does not count.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.domain.slo import Metric
from planner.profilers.endpoint.metrics import server_state
from planner.profilers.endpoint.records import LOAD_CAN_CAUSE, Request
from planner.profilers.endpoint.schedule import arrivals
from planner.profilers.endpoint.search import Verdict
from planner.profilers.endpoint.verdict import Judgement, metric_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from planner.domain.slo import Slo
    from planner.profilers.endpoint.client import Client
    from planner.profilers.endpoint.dialect import Dialect, Prompts
    from planner.profilers.endpoint.metrics import ServerState
    from planner.profilers.endpoint.records import Failure
    from planner.profilers.endpoint.schedule import Size
    from planner.profilers.endpoint.verdict import Monitor

TICK_S = 0.01
"""Period of the timer whose lateness says how late the client reads."""

JUDGING_SHARE = 0.02
"""Part of the client's time that judging may take: it stops the reading of tokens meanwhile."""

JUDGE_EVERY_S = 0.2

METRICS_EVERY_S = 5.0
"""Rarely: rendering its metrics costs the server time that requests wait for."""

LATE_SHARE = 0.05
"""A client is too slow if it sends or reads later than this part of the tightest bound (TPOT: times the tokens)..."""

LATE_FLOOR_S = 0.01
"""... but never for being late by less than this."""

LATE_SHARES = (0.01, 0.05)
"""... and that for more than half of the share of requests that the strictest objective allows beyond its bound; at
least and at most for these shares of the requests it sends, or of the time in which it cannot read."""

GIVE_UP_FACTOR, GIVE_UP_AFTER_S = 5.0, 1.0
"""A run is given up at once if after this long the client was that many times too late."""

DEAD_AFTER = 20
"""A run is given up once so many requests in a row failed for a reason that load does not explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How late a client may be before it measures itself."""

    limit_s: float
    share: float
    """Share of the requests, and of the time, for which it may be later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Punctuality:
    """How far the client kept up."""

    sent_late_share: float
    """Share of the requests that were sent later than allowed."""
    blocked_share: float
    """Share of the time in which the client could not read for longer than allowed."""
    sent_late_s: float
    """p99 of how much later than due requests were sent."""
    patience: Patience

    @property
    def is_good(self) -> bool:
        """Whether what was measured is the server and not the client."""
        return max(self.sent_late_share, self.blocked_share) <= self.patience.share

    def __str__(self) -> str:
        return (
            f"it sent {self.sent_late_share:.1%} of the requests more than {self.patience.limit_s * 1e3:.0f} ms late,"
            f" and could not read for longer than that in {self.blocked_share:.1%} of the time"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run at one rate, with everything that was seen."""

    rate_rps: float
    judgement: Judgement
    judged: Sequence[Request]
    """The requests that count: in order of arrival, after the warm-up."""
    beyond: Sequence[tuple[Slo, int]]
    """How many of them are beyond each objective's bound."""
    n_sent: int
    span_s: float
    """How long the run took."""
    served_rps: float
    """Answers per second after the warm-up."""
    punctuality: Punctuality
    failures: Mapping[str, int]
    """Number of failed requests by kind, warm-up included."""
    failure: Failure | None
    """One that load does not explain, if there was any."""
    states: Sequence[ServerState] = ()

    @property
    def is_dead(self) -> bool:
        """Whether more than chance failed for reasons that load does not explain."""
        n_broken = sum(count for kind, count in self.failures.items() if kind not in LOAD_CAN_CAUSE)
        return n_broken > max(3, 0.01 * self.n_sent)


@dataclass(slots=True)
class _Sender:
    client: Client
    dialect: Dialect
    prompts: Prompts
    requests: list[Request] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def send_all(self, start_s: float, schedule: Iterator[tuple[float, Size]]) -> None:
        """Send requests until cancelled; each one's body is made while there is time before it."""
        for at_s, size in schedule:
            body = self.prompts.body(size)
            due_s = start_s + at_s
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            request = Request(size=size, due_s=due_s)
            self.requests.append(request)
            task = asyncio.create_task(self.client.send(self.dialect.path, body, request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        """Abandon the requests under way: closed connections tell the server to drop them."""
        under_way = list(self.tasks)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def is_dead(self) -> bool:
        """Return whether the last requests that ended all failed for a reason that load does not explain."""
        ended = [one for one in self.requests if one.end_s is not None][-DEAD_AFTER:]
        return len(ended) == DEAD_AFTER and all(
            one.failure is not None and one.failure.kind not in LOAD_CAN_CAUSE for one in ended
        )


async def _watch(lags_s: list[float]) -> None:
    while True:
        due_s = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        lags_s.append(time.monotonic() - due_s)


async def _sample(client: Client, states: list[ServerState]) -> None:
    while True:
        state = await server_state(client)
        if state is None:
            return
        states.append(state)
        await asyncio.sleep(METRICS_EVERY_S)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from stopping the reader during a run."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def allow_connections() -> None:
    """Let this process open as many files as the system allows it: each request under way is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run_load(
    client: Client,
    dialect: Dialect,
    prompts: Prompts,
    *,
    rate_rps: float,
    shares: Mapping[Size, float],
    monitor: Monitor,
    patience: Patience,
    longest_s: float,
    rng: np.random.Generator,
    tell: Callable[[int], None] | None = None,
) -> Run:
    """Send requests at a rate until the monitor has judged it, and return what was seen.

    Parameters
    ----------
    shares : the sizes' parts of the requests.
    patience : how late the client may be (`patience`).
    longest_s : judge by what was seen after this long.
    tell : is told the number of judged requests, now and then.
    """
    sender = _Sender(client, dialect, prompts)
    lags_s: list[float] = []
    states: list[ServerState] = []
    with _no_collection():
        start_s = time.monotonic()
        helpers: list[asyncio.Task[Any]] = [
            asyncio.create_task(sender.send_all(start_s, arrivals(rate_rps, shares, rng))),
            asyncio.create_task(_watch(lags_s)),
            asyncio.create_task(_sample(client, states)),
        ]
        try:
            judging = asyncio.create_task(_judged(sender, monitor, start_s, longest_s, tell))
            helpers.append(judging)
            judgement = await _unless_late(judging, lags_s, patience)
            end_s = time.monotonic()
        finally:
            for helper in helpers:
                helper.cancel()
            await sender.stop()
            results = await asyncio.gather(*helpers, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    if states and (state := await server_state(client)):
        states.append(state)
    return _run(
        sender.requests, monitor, judgement, lags_s=lags_s, states=states, rate_rps=rate_rps, patience=patience,
        start_s=start_s, end_s=end_s,
    )  # fmt: skip


async def _unless_late(judging: asyncio.Task[Judgement], lags_s: Sequence[float], patience: Patience) -> Judgement:
    """Return the judgement, or an open one as soon as the client is far too late for any."""
    start_s = time.monotonic()
    while not (await asyncio.wait({judging}, timeout=GIVE_UP_AFTER_S / 4))[0]:
        span_s = time.monotonic() - start_s
        late_s = sum(lag for lag in lags_s if lag > patience.limit_s)
        if span_s > GIVE_UP_AFTER_S and late_s > GIVE_UP_FACTOR * patience.share * span_s:
            return Judgement(verdict=Verdict.OPEN, is_sure=False)
    return judging.result()


async def _judged(
    sender: _Sender,
    monitor: Monitor,
    start_s: float,
    longest_s: float,
    tell: Callable[[int], None] | None,
) -> Judgement:
    wait_s = JUDGE_EVERY_S
    while True:
        await asyncio.sleep(wait_s)
        now_s = time.monotonic()
        is_last = now_s - start_s > longest_s or sender.is_dead()
        judgement = monitor.judge(sender.requests, start_s, now_s, is_last=is_last)
        if tell is not None:
            tell(monitor.n_judged)
        if judgement.verdict is not Verdict.OPEN:
            return judgement
        if is_last:
            return Judgement(verdict=Verdict.FAILS, is_sure=False, reason="no steady state within the time there was")
        wait_s = max(JUDGE_EVERY_S, (time.monotonic() - now_s) / JUDGING_SHARE)


def _run(
    requests: Sequence[Request],
    monitor: Monitor,
    judgement: Judgement,
    *,
    lags_s: Sequence[float],
    states: Sequence[ServerState],
    rate_rps: float,
    patience: Patience,
    start_s: float,
    end_s: float,
) -> Run:
    late = [one.sent_s - one.due_s for one in requests if one.sent_s is not None]
    blocked_s = sum(lag for lag in lags_s if lag > patience.limit_s)
    failures: dict[str, int] = {}
    broken: Failure | None = None
    for request in requests:
        if request.failure is not None:
            failures[request.failure.kind] = failures.get(request.failure.kind, 0) + 1
            if request.failure.kind not in LOAD_CAN_CAUSE:
                broken = broken or request.failure
    since_s = start_s if monitor.warm_s is None else monitor.warm_s
    served = sum(1 for one in requests if one.is_answered and since_s <= (one.end_s or 0.0) <= end_s)
    return Run(
        rate_rps=rate_rps,
        judgement=judgement,
        judged=tuple(monitor.judged(requests)),
        beyond=monitor.beyond(),
        n_sent=len(requests),
        span_s=end_s - start_s,
        served_rps=served / max(end_s - since_s, 1e-9),
        punctuality=Punctuality(
            sent_late_share=float(np.mean(np.array(late) > patience.limit_s)) if late else 0.0,
            blocked_share=blocked_s / max(end_s - start_s, 1e-9),
            sent_late_s=float(np.percentile(late, 99.0)) if late else 0.0,
            patience=patience,
        ),
        failures=failures,
        failure=broken,
        states=tuple(states),
    )


def patience(slos: Sequence[Slo], output_tokens: int) -> Patience:
    """Return how late a client may be that measures these objectives."""
    bounds = [slo.bound_s * (max(output_tokens - 1, 1) if slo.metric is Metric.TPOT else 1) for slo in slos]
    shares = [1.0 - slo.percentile / 100.0 for slo in slos if slo.percentile is not None]
    least, most = LATE_SHARES
    return Patience(
        limit_s=max(LATE_FLOOR_S, LATE_SHARE * min(bounds)),
        share=min(max(min(shares, default=1.0) / 2.0, least), most),
    )


STATISTICS = (("mean", None), ("median", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0))


def latencies_s(requests: Sequence[Request], metric: Metric) -> dict[str, float]:
    """Return the statistics of a metric over the answered requests, as profile files name them; empty = none known."""
    values = [value for one in requests if (value := metric_s(one, metric)) is not None and one.failure is None]
    if not values:
        return {}
    return {
        name: float(np.mean(values)) if percentile is None else float(np.percentile(values, percentile))
        for name, percentile in STATISTICS
    }
