"""The same choice for a service with adapters: processes that come and go, on weights of their own or shared ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.billing import billing_rule
from planner.domain.adapters import Isolation
from planner.domain.scaling import ScaledService, ScalingChoice, ScalingWay
from planner.errors import InputError
from planner.files.adapters_csv import read_adapters
from planner.optimize.keep_alive import COMMON_KEEP_ALIVE_S
from planner.planning.function_case import Hosting, Sizes, function_case
from planner.planning.function_traffic import function_traffic, mean_rates_rps
from planner.planning.function_ways import Prices, Way
from planner.planning.functions import compare_ways
from planner.planning.located import at
from planner.planning.scaling_ways import (
    BY_THE_SECOND,
    CLOUDS,
    HOUR_S,
    LEARNT,
    MOST_HELD,
    NO_PROVISION,
    SEED,
    AskedService,
    always_on,
    billing_note,
    chosen,
    dated,
    engine_note,
    machine_s,
    recorded_end_s,
    vetoed,
)
from planner.profilers.roofline import misfit
from planner.simulate.functions.setting import NOTHING, process_bytes
from planner.units import format_duration
from planner.workload.popularity import default_gaps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.adapters import Adapter
    from planner.domain.hardware import GpuSpec, Offer
    from planner.domain.pay_per_use import PayPerUse
    from planner.domain.plan import Plan
    from planner.domain.scaling import Doubt
    from planner.planning.function_case import FunctionCase
    from planner.planning.function_ways import Comparison, WayOutcome
    from planner.planning.scaling_clouds import CloudDoubts
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.startup import Quantiles
    from planner.workload.adapter_traffic import AdapterTraffic

MOST_REQUESTS = 4_000
"""Of all adapters together; made up at their rates for a day at most, or read of their traces."""
MOST_BUSY_REQUESTS = 20_000
"""Of adapters with more requests than that in `LEAST_S`."""
LEAST_S = 24 * COMMON_KEEP_ALIVE_S
"""What is learnt from and judged lasts at least, for keeping to show: each quarter six times what clouds keep."""
DAY_S = 86_400.0
WAYS = {
    Way.SERVERLESS: ScalingWay.SERVERLESS,
    Way.KEPT: ScalingWay.SERVERLESS,
    Way.SHARED: ScalingWay.SHARED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sold:
    """A GPU that is given back, and what it costs."""

    gpu: GpuSpec
    offer: str
    prices: Prices
    provision_s: Quantiles
    """Until a machine is there with its image."""
    as_of: date | None
    precision: str
    """Of the weights."""
    doubts: tuple[Doubt, ...] = ()
    is_barred: bool = False
    """It is compared, and never chosen."""
    billing: str = ""
    """How it is billed, in words, where that is not in its price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAsk(AskedService):
    """A service with adapters, and what could serve it in place of its part of the fleet."""

    by_use: tuple[PayPerUse, ...]
    clouds: CloudDoubts
    rented: tuple[Offer, ...]
    gpus: GpuCatalog
    params: EstimatorParams
    base_dir: Path
    follows_load = False
    """What is learnt of adapters is learnt at their rates."""

    def replayed(self, way: ScaledService, *, seed: int, load: float) -> ScaledService:  # noqa: ARG002 - see `follows_load`
        """Return how a way fares on the judged half, with other starts; see `ScalingAsk`.

        Raises
        ------
        InputError: if what it rents is no longer there.
        """
        adapters, traffic = self._traffic()
        names = [adapter.name for adapter in adapters]
        mine = [kind for kind, told in WAYS.items() if told is way.way]
        for sold in self._prices():
            if sold.offer == way.offer:
                case = self._case(sold.gpu, adapters, sold.provision_s)
                found = compare_ways(traffic, case, sold.prices, ways=mine, seed=seed)
                ways = (_told(outcome, found, sold, names) for outcome in found.ways)
                played = next((each for each in ways if each.rule == way.rule), None)
                if played is not None:
                    return played
        raise InputError(f"{self.name} is given back on {way.offer}, which its request has not.", hint="Plan again.")

    def __post_init__(self) -> None:
        """Refuse a length of traces that are not there."""
        if self.choice.recorded is not None and all(adapter.trace is None for adapter in self._adapters()):
            raise InputError(
                "The adapters have rates, and a recording that none was read from has no length.",
                hint="Leave recorded out, or give the adapters traces.",
                where=at("recorded"),
            )

    def __call__(self, plan: Plan) -> ScalingChoice:
        """Return the ways, the plan's own first.

        What cannot be replayed is left out, and the notes say why.
        """
        ways, notes = [always_on(plan, self.name, at_stake_usd_per_hour=self.at_stake_usd_per_hour)], []
        n_requests, judged_s = 0, 0.0
        try:
            adapters, traffic = self._traffic()
            for sold in self._prices():
                case = self._case(sold.gpu, adapters, sold.provision_s)
                found = compare_ways(traffic, case, sold.prices, ways=list(WAYS), seed=SEED)
                names = [adapter.name for adapter in adapters]
                for way in (_told(outcome, found, sold, names) for outcome in found.ways):
                    is_given_back = _is_given_back(way, sold.prices.offer)
                    ways += [way] if is_given_back else []
                    notes += [] if is_given_back else [_held_note(way)]
                notes += [sold.billing] if sold.billing else []
                notes += [text for text in found.cautions if "left out" in text or "never served" in text]
                n_requests, judged_s = found.n_requests, found.duration_s
        except InputError as error:
            notes.append(f"Not compared{' any further' if len(ways) > 1 else ''}: {error.message}")
        return ScalingChoice(
            service=self.service.request.name,
            chosen=chosen(ways),
            ways=tuple(ways),
            requests=n_requests,
            judged_s=judged_s,
            vetoed=vetoed(ways),
            objectives=tuple(map(str, self.service.request.slo)),
            notes=tuple(dict.fromkeys([*notes, *self._notes()])),
        )

    def _adapters(self) -> tuple[Adapter, ...]:
        """Return the adapters with requests, those with a trace with it."""
        choice = self.service.request.adapters
        if choice is None:
            return ()
        listed = choice.listed()
        if choice.file is not None:
            listed = read_adapters(self.base_dir / choice.file, isolation=choice.isolation)
        return tuple(adapter for adapter in listed if adapter.trace is not None or adapter.rate_rps)

    def _traffic(self) -> tuple[tuple[Adapter, ...], AdapterTraffic]:
        """Return the adapters and their requests.

        Raises
        ------
        InputError: if there are too many of them in too short a time for keeping to show.
        """
        listed = self._adapters()
        traces = {} if self.service.adapters is None else self.service.adapters.traces
        are_made_up = any(adapter.trace is None for adapter in listed)
        total_rps = math.fsum(mean_rates_rps(listed, traces)) if are_made_up else 0.0
        duration_s = None
        if total_rps > 0:
            duration_s = min(DAY_S, max(LEAST_S, MOST_REQUESTS / total_rps), MOST_BUSY_REQUESTS / total_rps)
        adapters, traffic = function_traffic(
            listed, gaps=default_gaps(), duration_s=duration_s, rng=np.random.default_rng(SEED), base_dir=self.base_dir
        )
        is_cut = total_rps > 0
        n = min(MOST_BUSY_REQUESTS, max(MOST_REQUESTS, int(np.searchsorted(traffic.arrival_s, LEAST_S))))
        if total_rps == 0 and (is_cut := len(traffic.arrival_s) > n):
            end_s = float(traffic.arrival_s[n])
            traffic = replace(traffic, arrival_s=traffic.arrival_s[:n], adapter=traffic.adapter[:n], duration_s=end_s)
        elif total_rps == 0:
            end_s = recorded_end_s(float(traffic.arrival_s[-1]), self.choice.recorded)
            traffic = replace(traffic, duration_s=end_s)
        if is_cut and traffic.duration_s < LEAST_S:
            raise InputError(
                f"too busy to be given back: {len(traffic.arrival_s):,} requests come in"
                f" {format_duration(traffic.duration_s)}, and the longest time without one is"
                f" {format_duration(float(np.diff(traffic.arrival_s).max()))}."
            )
        return adapters, traffic

    def _prices(self) -> Iterator[_Sold]:
        """Yield the cheapest GPU to rent, and the cheapest pay-per-use offer that may be chosen, if there is one.

        Both are the cheapest by their price alone of those that the weights fit on. Who rents a machine of several GPUs
        pays all of them, and can give back only all. What is always on beside a pay-per-use offer is rented at the
        price of the plan's cheapest GPU of the kind.
        """
        missed = self.choice.missed
        provision_s = machine_s(self.choice)
        if provision_s is not None:
            for offer in sorted(self.rented, key=lambda each: (each.price_usd_per_hour, each.name)):
                if self._fits(offer.gpu):
                    rule = billing_rule(offer) or BY_THE_SECOND
                    prices = Prices(usd_per_gpu_hour=offer.price_usd_per_hour, rule=rule, usd_per_miss=missed)
                    yield _Sold(
                        gpu=self.gpus.get(offer.gpu),
                        offer=offer.name,
                        prices=prices,
                        provision_s=provision_s,
                        as_of=offer.as_of,
                        precision=self.service.configs[0].precision,
                        billing=billing_note(offer),
                    )
                    break
        each_gpu = [(offer.price_usd_per_hour / offer.gpus_per_instance, offer.gpu) for offer in self.rented]
        by_price = sorted(self.by_use, key=lambda each: (self.clouds.bars(each), each.usd_per_container_s, each.name))
        for sold in by_price:
            if self._fits(sold.gpu):
                mine = (price for price, gpu in each_gpu if gpu == sold.gpu)
                own = min(mine, default=sold.usd_per_container_s * HOUR_S)
                prices = Prices(usd_per_gpu_hour=own, offer=sold, usd_per_miss=missed)
                yield _Sold(
                    gpu=self.gpus.get(sold.gpu),
                    offer=sold.name,
                    prices=prices,
                    provision_s=NOTHING,
                    as_of=sold.as_of,
                    precision=self.service.configs[0].precision,
                    doubts=self.clouds.of(sold),
                    is_barred=self.clouds.bars(sold),
                )
                return

    def _fits(self, gpu: str) -> bool:
        """Return whether a process with weights of its own finds room on one such GPU."""
        model, config = self.service.model, replace(self.service.configs[0], tensor_parallel=1, pipeline_parallel=1)
        if misfit(model, self.gpus.get(gpu), config, self.params):
            return False
        case = self._case(self.gpus.get(gpu), self._adapters(), NOTHING)
        largest = float(case.functions.adapter_bytes.max())
        return process_bytes(case.setting, largest, Isolation.DEDICATED) <= case.setting.gpu_bytes

    def _case(self, gpu: GpuSpec, adapters: tuple[Adapter, ...], provision_s: Quantiles) -> FunctionCase:
        request, sizes = self.service.request, self._sizes()
        return function_case(
            self.service.model,
            gpu,
            adapters,
            sizes=sizes,
            slos=request.slo,
            hosting=Hosting(
                storage_bytes_per_s=self.choice.storage,
                loader=self.choice.loader,
                provision_s=provision_s.p50,
                provision_p99_s=provision_s.p99,
                captures_graphs=self.choice.graphs,
            ),
            params=self.params,
            precision=self.service.configs[0].precision,
        )

    def _sizes(self) -> Sizes:
        """Return the mean request of the workload."""
        buckets = [] if self.service.adapters is None else self.service.adapters.sizes.buckets
        total = math.fsum(bucket.rate_rps for bucket in buckets)
        return Sizes(
            input_tokens=math.fsum(bucket.rate_rps * (bucket.input_tokens or 1.0) for bucket in buckets) / total,
            output_tokens=math.fsum(bucket.rate_rps * (bucket.output_tokens or 1.0) for bucket in buckets) / total,
        )

    def _notes(self) -> Iterator[str]:
        if note := engine_note(self.service.configs[0].engine):
            yield note
        if self.choice.provision is None:
            yield NO_PROVISION
        if any(adapter.trace is None for adapter in self._adapters()):
            yield "Requests are made up at the stated rates, in sessions as fitted to a production trace."


def _told(outcome: WayOutcome, found: Comparison, sold: _Sold, names: Sequence[str]) -> ScaledService:
    hours = found.duration_s / HOUR_S
    by_use = sold.prices.offer
    clouds_s = None if by_use is None else by_use.keep_alive_s
    kept_s = outcome.learnt.get("keep_alive_s") if clouds_s is None else clouds_s
    return ScaledService(
        way=WAYS[outcome.way],
        rule=CLOUDS if clouds_s is not None else LEARNT if kept_s is None else f"{kept_s:g} s",
        offer=sold.offer,
        gpu=sold.gpu.name,
        gpus_per_replica=1,
        keep_alive_s=kept_s,
        cost_usd_per_hour=outcome.cost_usd / hours,
        missed_usd_per_hour=outcome.miss_usd / hours,
        is_met=found.meets(outcome),
        attainment=outcome.attainment,
        ttft_p50_s=outcome.ttft_p50_s if math.isfinite(outcome.ttft_p50_s) else None,
        ttft_p99_s=outcome.ttft_p99_s if math.isfinite(outcome.ttft_p99_s) else None,
        cold_fraction=outcome.cold_fraction,
        mean_replicas=outcome.replay.gpu_s / found.duration_s,
        price_as_of=dated(sold.as_of),
        learnt_usd_per_hour=None if outcome.trial is None else outcome.trial.usd_per_hour,
        is_safe=None if outcome.trial is None else outcome.trial.is_safe,
        keep_alive_by_adapter_s=_each(outcome, names),
        most_replicas=outcome.most_gpus,
        precision=sold.precision,
        doubts=sold.doubts,
        is_barred=sold.is_barred,
    )


def _is_given_back(way: ScaledService, offer: PayPerUse | None) -> bool:
    """Return whether not nearly all machines that it ever holds at once are paid all the time."""
    most = MOST_HELD * (way.most_replicas or 0)
    return (way.mean_replicas or 0.0) <= most or (offer is not None and not offer.bills_idle)


def _held_note(way: ScaledService) -> str:
    return (
        f"{way.offer} as {way.way.value} is left out: it holds {way.mean_replicas:.3g} machines on average and"
        f" {way.most_replicas} at most, so hardly anything is given back."
    )


def _each(outcome: WayOutcome, names: Sequence[str]) -> dict[str, float]:
    """Return how long each adapter is kept; empty where all are kept alike."""
    if outcome.way is not Way.KEPT or outcome.keep_alive_s is None:
        return {}
    return dict(zip(names, outcome.keep_alive_s.tolist(), strict=True))
