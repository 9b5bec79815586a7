"""Plain serverless beside a plan with adapters: a container with weights of its own for each adapter while it is asked.

Nothing is learnt, nothing is loaded ahead: what a cloud does by itself. Requests are replayed one by one, a first part
to warm up and a second part to judge, on the cheapest pay-per-use GPU on which a request that finds its container ready
is within the bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation
from planner.domain.distributions import Weibull
from planner.domain.slo import Metric, Slo
from planner.errors import InputError
from planner.files.adapters_csv import read_adapters
from planner.files.request.scaling import ScaleToZero
from planner.optimize.keep_alive import HUAWEI_KEEP_ALIVE_S
from planner.planning.function_case import Hosting, Sizes, function_case
from planner.planning.function_plans import Half
from planner.planning.function_serverless import learn_serverless
from planner.planning.function_traffic import function_traffic, mean_rates_rps
from planner.planning.function_ways import HOUR_S, Prices
from planner.profilers.startup import load_startup
from planner.simulate.functions.setting import process_bytes
from planner.workload.popularity import default_gaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.adapters import Adapter
    from planner.domain.pay_per_use import PayPerUse
    from planner.planning.function_case import FunctionCase
    from planner.planning.services import PreparedService
    from planner.profilers.efficiency import EstimatorParams
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.steps import Floats

MOST_REQUESTS = 4_000
"""Of all adapters together, the first half of the time to warm up."""
DAY_S = 86_400.0
SEED = 0
LOADER = "safetensors"
POISSON_SHAPE = 1.0
"""Weibull gaps of this shape are those of a Poisson process."""
NO_BOUND_S = 1e6
"""A bound on the TTFT where there is none: whatever comes is in time."""


def default_choice() -> ScaleToZero:
    """Return what is taken for granted where a request does not say it: the best that was measured of the loader."""
    table = load_startup()
    most, fraction = table["weights_gb_s", LOADER].p50, table["weights_fraction", LOADER].p50
    return ScaleToZero.model_validate({"storage": f"{most / fraction:.6g} GB/s", "loader": LOADER})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainOutcome:
    """What plain serverless costs one service, and how its requests fare."""

    offer: PayPerUse
    keep_alive_s: float
    cost_usd_per_hour: float
    is_met: bool
    attainment: float
    """Part of the judged requests that are within all their bounds."""
    ttft_p50_s: float
    ttft_p99_s: float
    requests: int
    """That were judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests for the adapters of one service, in the order of arrival."""

    adapters: tuple[Adapter, ...]
    """With requests; those with a trace with its rate."""
    arrival_s: Floats
    adapter: NDArray[np.int64]
    """Position in `adapters`."""
    end_s: float
    first_judged: int
    """Number of the first request that counts, in the second half of the time; those before fill what serves."""
    are_made_up: bool
    """At least those of adapters without a trace."""
    times: float = 1.0
    """As many as on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainServerless:
    """A service with adapters, and what it needs to be replayed in containers of a cloud."""

    service: PreparedService
    choice: ScaleToZero
    offers: tuple[PayPerUse, ...]
    """That the request allows; the first that will do is taken, the cheapest by the second first,
    those last that bill more than is known."""
    others: tuple[PayPerUse, ...]
    """What is taken where none of them will do."""
    gpus: GpuCatalog
    params: EstimatorParams
    base_dir: Path
    is_asked: bool = False
    """The request says what `choice` says."""

    def times(self) -> float:
        """Return how many times as often as on average the plan has its adapters asked for: at a peak more than once.

        1 where that is not known, or nothing is planned.
        """
        mean_rps = self._mean_rps()
        adapters = self.service.adapters
        if adapters is None or self.service.request.workload.peak is None or mean_rps <= 0:
            return 1.0
        return math.fsum(tenant.rate_rps for tenant in adapters.tenancy.tenants) / mean_rps

    def requests(self, *, times: float = 1.0) -> Requests:
        """Return the requests of the adapters: made up at their rates, or out of their traces.

        Made-up ones come at random, as `gpuplan simulate` draws them; where the request compares the service for scale
        to zero in sessions as in a production trace, as that comparison has them.

        times : as often as on average.

        Raises
        ------
        InputError: if a trace has no times, or there are too few requests.
        """
        asked = self.asked()
        are_made_up = any(adapter.trace is None for adapter in asked)
        total_rps = times * self._mean_rps()
        adapters, traffic = function_traffic(
            asked,
            gaps=default_gaps() if self.is_asked else Weibull.of_mean(1.0, shape=POISSON_SHAPE),
            duration_s=min(DAY_S, MOST_REQUESTS / total_rps) if are_made_up and total_rps > 0 else None,
            rng=np.random.default_rng(SEED),
            base_dir=self.base_dir,
            times=times,
        )
        count = min(len(traffic.arrival_s), MOST_REQUESTS)
        end_s = traffic.duration_s if count == len(traffic.arrival_s) else float(traffic.arrival_s[count])
        at = int(np.searchsorted(traffic.arrival_s[:count], end_s / 2))
        if at == count:
            raise InputError("There are too few requests to judge by.")
        return Requests(
            adapters=adapters,
            arrival_s=traffic.arrival_s[:count],
            adapter=traffic.adapter[:count],
            end_s=end_s,
            first_judged=at,
            are_made_up=are_made_up,
            times=times,
        )

    def asked(self) -> list[Adapter]:
        """Return the adapters with requests."""
        choice = self.service.request.adapters
        listed: Sequence[Adapter] = () if choice is None else choice.listed()
        if choice is not None and choice.file is not None:
            listed = read_adapters(self.base_dir / choice.file, isolation=choice.isolation)
        return [adapter for adapter in listed if adapter.trace is not None or adapter.rate_rps]

    def _mean_rps(self) -> float:
        """Return how often all adapters together are asked for on average."""
        return math.fsum(
            mean_rates_rps(self.asked(), {} if self.service.adapters is None else self.service.adapters.traces)
        )

    def play(self, requests: Requests) -> PlainOutcome:
        """Return what came of the replay.

        Raises
        ------
        InputError: if the adapters cannot be served so, or no offer will do.
        """
        for offer in (*self._ranked(self.offers), *self._ranked(self.others)):
            case = self._case(offer, requests.adapters)
            if case is not None and self._is_fast_enough(case):
                return self._outcome(offer, case, requests)
        raise InputError("no pay-per-use GPU serves a request within the objectives, even without a cold start")

    @staticmethod
    def _ranked(offers: Sequence[PayPerUse]) -> list[PayPerUse]:
        return sorted(
            offers, key=lambda each: (not each.is_all_in, each.usd_per_container_s, each.usd_per_request, each.name)
        )

    def _case(self, offer: PayPerUse, adapters: Sequence[Adapter]) -> FunctionCase | None:
        """Return what is replayed; None if the model is not known or has no room there."""
        eased = [replace(adapter, slos=tuple(_percentiles(adapter.slos))) for adapter in adapters]
        hosting = Hosting(
            storage_bytes_per_s=self.choice.storage, loader=self.choice.loader, captures_graphs=self.choice.graphs
        )
        try:
            case = function_case(
                self.service.model,
                self.gpus.get(offer.gpu),
                eased,
                sizes=self._sizes(),
                slos=tuple(_percentiles(self.service.request.slo)),
                hosting=hosting,
                params=self.params,
                precision=self.service.configs[0].precision,
            )
        except InputError:
            return None
        needed = process_bytes(case.setting, float(case.functions.adapter_bytes.max()), Isolation.DEDICATED)
        return case if needed <= case.setting.gpu_bytes else None

    def _sizes(self) -> Sizes:
        """Return the mean request of the workload."""
        buckets = () if self.service.adapters is None else self.service.adapters.sizes.buckets
        total = math.fsum(bucket.rate_rps for bucket in buckets)
        return Sizes(
            input_tokens=math.fsum(bucket.rate_rps * (bucket.input_tokens or 1.0) for bucket in buckets) / total,
            output_tokens=math.fsum(bucket.rate_rps * (bucket.output_tokens or 1.0) for bucket in buckets) / total,
        )

    def _is_fast_enough(self, case: FunctionCase) -> bool:
        """Return whether a request alone, on a container that is ready, is within all bounds."""
        ttft_s = case.setting.prefill.first_s
        later_s = 0.0 if case.setting.decode is None else case.setting.decode.first_s
        alone = {
            Metric.TTFT: ttft_s,
            Metric.TPOT: later_s / max(case.output_tokens - 1.0, 1.0),
            Metric.E2E: ttft_s + later_s,
        }
        own = () if self.service.adapters is None else self.service.adapters.own_slos.values()
        return all(alone[slo.metric] <= slo.bound_s for slos in (self.service.request.slo, *own) for slo in slos)

    def _outcome(self, offer: PayPerUse, case: FunctionCase, requests: Requests) -> PlainOutcome:
        at, count, end_s = requests.first_judged, len(requests.arrival_s), requests.end_s
        whole = Half(arrival_s=requests.arrival_s, function=requests.adapter, duration_s=end_s)
        middle_s = end_s / 2
        warm_up = Half(arrival_s=whole.arrival_s[:at], function=whole.function[:at], duration_s=middle_s)
        plan = learn_serverless(whole, case, Prices(usd_per_gpu_hour=0.0, offer=offer), SEED)
        replay = plan.replay(whole, SEED)
        before_usd = _paid_usd(offer, plan.replay(warm_up, SEED), at) if at else 0.0
        ttft_s = replay.records.ttft_s[at:]
        judged = list(self._judged(replay, at, requests.adapters, case.output_tokens))
        within = np.logical_and.reduce([each for each, _ in judged])
        return PlainOutcome(
            offer=offer,
            keep_alive_s=HUAWEI_KEEP_ALIVE_S if offer.keep_alive_s is None else offer.keep_alive_s,
            cost_usd_per_hour=max(0.0, _paid_usd(offer, replay, count) - before_usd) / (end_s - middle_s) * HOUR_S,
            is_met=all(is_met for _, is_met in judged),
            attainment=float(within.mean()),
            ttft_p50_s=_quantile(ttft_s, 0.5),
            ttft_p99_s=_quantile(ttft_s, 0.99),
            requests=count - at,
        )

    def _judged(
        self, replay: FunctionReplay, at: int, adapters: Sequence[Adapter], output_tokens: float
    ) -> Iterator[tuple[NDArray[np.bool_], bool]]:
        """Yield for each objective which requests from number `at` on are within its bound, and whether it holds.

        An adapter's own objectives are judged by its own requests, and leave those of the service aside.
        """
        own = {} if self.service.adapters is None else self.service.adapters.own_slos
        records, function = replay.records, replay.records.function[at:]
        values_s = {
            Metric.TTFT: records.ttft_s[at:],
            Metric.E2E: records.e2e_s[at:],
            Metric.TPOT: (records.e2e_s - records.ttft_s)[at:] / max(1.0, output_tokens - 1.0),
        }
        is_own = np.array([adapter.name in own for adapter in adapters], dtype=np.bool_)[function]
        groups = [(~is_own, tuple(self.service.request.slo))]
        groups += [(function == index, own[each.name]) for index, each in enumerate(adapters) if each.name in own]
        for mine, slos in groups:
            for slo in slos:
                yield (
                    (values_s[slo.metric] <= slo.bound_s) | ~mine,
                    not mine.any() or _holds(values_s[slo.metric][mine], slo),
                )


def _percentiles(slos: Sequence[Slo]) -> Iterator[Slo]:
    """Yield bounds that stand in for `slos` while requests are played: they decide how many processes take turns."""
    for slo in slos:
        if slo.metric is not Metric.E2E:
            yield replace(slo, percentile=50.0) if slo.percentile is None else slo
    if slos and all(slo.metric is not Metric.TTFT for slo in slos):
        yield Slo(metric=Metric.TTFT, percentile=50.0, bound_s=NO_BOUND_S)


def _paid_usd(offer: PayPerUse, replay: FunctionReplay, n_requests: int) -> float:
    return offer.cost_usd(replay.holds_s, n_requests=n_requests, used_s=replay.rented_used_s)


def _holds(values_s: Floats, slo: Slo) -> bool:
    if slo.percentile is None:
        return float(values_s.mean()) <= slo.bound_s
    return float((values_s <= slo.bound_s).mean()) >= slo.percentile / 100.0


def _quantile(values_s: Floats, fraction: float) -> float:
    return float(np.quantile(values_s, fraction, method="inverted_cdf"))
