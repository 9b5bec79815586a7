"""A queue in virtual time under the judgement of the endpoint profiler: what it would find on a server of this law."""

from __future__ import annotations

import heapq
import math
from itertools import islice

import numpy as np

from planner.domain.slo import Metric
from planner.profilers.endpoint.records import Request
from planner.profilers.endpoint.schedule import Size, arrivals
from planner.profilers.endpoint.search import RateSearch, Tried, Verdict
from planner.profilers.endpoint.verdict import Monitor

SIZE = Size(100, 2)
JUDGE_EVERY = 0.02


def judged(rate_rps, slos, service, *, slots=1, seed=0, confidence=0.95, limit=200_000):
    """Return the judgement of a rate and the number of requests that it took.

    Parameters
    ----------
    service : rng -> seconds in service; the first token comes at its end.
    """
    rng = np.random.default_rng([seed, int(rate_rps * 1e6)])
    lone_s = {Metric.TTFT: float(np.mean([service(rng) for _ in range(200)])), Metric.TPOT: 0.0, Metric.E2E: 0.0}
    monitor = Monitor(slos, confidence=confidence, lone_s=lone_s, rate_rps=rate_rps)
    free = [0.0] * slots
    plan = []
    requests = []
    step_s = max(JUDGE_EVERY, 8 / rate_rps)
    now_s, at = step_s, 0
    schedule = arrivals(rate_rps, {SIZE: 1.0}, rng)
    upcoming = next(schedule)[0]
    while at < limit:
        while upcoming <= now_s:
            start_s = max(upcoming, heapq.heappop(free))
            end_s = start_s + service(rng)
            heapq.heappush(free, end_s)
            requests.append(Request(size=SIZE, due_s=upcoming, sent_s=upcoming))
            plan.append(end_s)
            upcoming = next(schedule)[0]
            at += 1
        for request, end_s in zip(requests, plan, strict=True):
            if request.end_s is None and end_s <= now_s:
                request.first_s = request.last_s = request.end_s = end_s
                request.output_tokens = 1
        judgement = monitor.judge(requests, 0.0, now_s)
        if judgement.verdict is not Verdict.OPEN:
            return judgement, len(requests)
        now_s += max(step_s, now_s * 0.02)
    return monitor.judge(requests, 0.0, now_s, is_last=True), len(requests)


def found_rate(start_rps, slos, service, *, slots=1, seed=0, resolution=0.08):
    """Return the largest rate that a search finds, and all requests that it took."""
    search = RateSearch(start_rps=start_rps, resolution=resolution, lowest_rps=start_rps / 1000)
    total = 0
    while not search.is_closed:
        rate_rps = search.next_rps()
        judgement, n = judged(rate_rps, slos, service, slots=slots, seed=seed + len(search.tried))
        total += n
        search.record(Tried(rate_rps=rate_rps, holds=judgement.verdict is Verdict.HOLDS))
    return search.holds_rps, total


def mm1_rate(mean_s, bound_s, allowed):
    """Return the rate at which a share `allowed` of the sojourns in an M/M/1 queue is longer than a bound."""
    return 1.0 / mean_s + math.log(allowed) / bound_s


def share_beyond(rate_rps, bound_s, service, *, slots=1, seed=0, n=200_000):
    """Return the share of sojourns beyond a bound in a long run of Poisson arrivals."""
    rng = np.random.default_rng(seed)
    free = [0.0] * slots
    at_s, beyond = 0.0, 0
    for gap in islice(iter(lambda: rng.exponential(1 / rate_rps), None), n):
        at_s += gap
        end_s = max(at_s, heapq.heappop(free)) + service(rng)
        heapq.heappush(free, end_s)
        beyond += end_s - at_s > bound_s
    return beyond / n
