"""The choice between a fleet that is always on and replicas that are given back, for services that ask for it.

Half of a service's trace is learnt from: which offer, how long an idle replica is kept, and which of all ways costs
least. The other half is judged, request by request, with every start drawn part by part, and can only speak against
what was chosen; the plan's own fleet is always there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.billing import billing_rule
from planner.catalog.pay_per_use import load_pay_per_use, read_pay_per_use, with_own
from planner.domain.hardware import Market
from planner.domain.pay_per_use import PayPerUse
from planner.domain.scaling import ScalingChoice, ScalingWay
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.optimize.keep_alive import COMMON_KEEP_ALIVE_S
from planner.planning.function_case import Sizes
from planner.planning.located import inside
from planner.planning.scaling_adapters import AdapterAsk
from planner.planning.scaling_clouds import CloudDoubts
from planner.planning.scaling_replica import (
    Candidate,
    Outcome,
    ReplicaKind,
    Requests,
    learnt,
    other_rules,
    play,
    replica_kind,
    told,
)
from planner.planning.scaling_ways import (
    BY_THE_SECOND,
    HOUR_S,
    NO_PROVISION,
    SEED,
    AskedService,
    always_on,
    billing_note,
    chosen,
    engine_note,
    machine_s,
    recorded_end_s,
    vetoed,
)
from planner.profilers.startup import check_loader
from planner.units import format_duration
from planner.workload.rates import mean_rate_rps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.hardware import Offer
    from planner.domain.plan import Plan
    from planner.domain.scaling import ScaledService
    from planner.domain.workload import Trace
    from planner.files.request import PlanRequest
    from planner.files.request.scaling import ScaleToZero
    from planner.planning.question import ScalingAsk
    from planner.planning.scaling_prices import PriceAges
    from planner.planning.services import PreparedService
    from planner.profilers.efficiency import EstimatorParams

MOST_REQUESTS = 10_000
"""Of a trace, from its beginning: a service that is rarely called has no more in a week."""
MOST_BUSY_REQUESTS = 20_000
"""Of one with more requests than that in twice `LEAST_HALF_S`."""
LEAST_HALF_S = 3 * COMMON_KEEP_ALIVE_S
"""What each half has to last for that much keeping to be told from none."""
FEWEST_REQUESTS = 20
"""In each half, below which nothing is learnt or judged."""
MOST_TRIED = 3
"""Offers of each way that are played; the cheapest for a request that starts its replica."""


def scaling_asks(
    request: PlanRequest,
    services: Sequence[PreparedService],
    offers: Sequence[Offer],
    *,
    gpus: GpuCatalog,
    params: EstimatorParams,
    prices: PriceAges,
    base_dir: Path,
) -> tuple[ScalingAsk, ...]:
    """Return for each service that asks for it what answers, given the plan.

    Raises
    ------
    InputError: if a trace is too short to learn and to judge by, or a cloud is not known.
    DataMissingError: if a pay-per-use price is too old, and that is refused.
    """
    asks: list[ScalingAsk] = []
    rented = tuple(offer for offer in offers if offer.market is Market.ON_DEMAND)
    for index, service in enumerate(services):
        choice = service.request.scale_to_zero
        if choice is None:
            continue
        with inside(f"services[{index}].scale_to_zero"):
            check_loader(choice.loader)
            by_use = wanted_pay_per_use(request, choice, gpus=gpus, base_dir=base_dir)
            clouds = CloudDoubts.of_request(request, choice)
            prices.check(by_use)
            headroom = request.constraints.headroom
            halves = trace_halves(service, choice.recorded, headroom) if service.adapters is None else None
        if halves is None:
            with inside(f"services[{index}].scale_to_zero"):
                asks.append(
                    AdapterAsk(
                        service=service,
                        choice=choice,
                        by_use=by_use,
                        clouds=clouds,
                        rented=rented,
                        gpus=gpus,
                        params=params,
                        base_dir=base_dir,
                    )
                )
            continue
        asks.append(
            _Ask(
                service=service,
                choice=choice,
                halves=halves,
                by_use=by_use,
                clouds=clouds,
                rented=rented,
                gpus=gpus,
                params=params,
            )
        )
    return tuple(asks)


def wanted_pay_per_use(
    request: PlanRequest, choice: ScaleToZero, *, gpus: GpuCatalog, base_dir: Path
) -> tuple[PayPerUse, ...]:
    """Return the pay-per-use offers that the request allows: by cloud or provider, and by the GPUs of its catalog.

    A plan that is for some providers gives nothing to others, unless `clouds` names them.

    Raises
    ------
    InputError: if a cloud has none.
    """
    offers, own = load_pay_per_use(), set[str]()
    for name in choice.files:
        mine = read_pay_per_use(base_dir / name, gpus=gpus)
        own.update(offer.provider for offer in mine)
        offers = with_own(offers, mine)
    clouds = sorted({offer.provider for offer in offers})
    for name in choice.clouds or ():
        if name not in clouds:
            hint = did_you_mean(name, clouds) or f"There are offers of: {', '.join(clouds)}."
            raise InputError(f"No pay-per-use offer is of the cloud {name!r}.", hint=hint)
    wanted = request.catalog.gpus
    included = None if wanted.include is None else {gpu for name in wanted.include for gpu in gpus.matching(name)}
    excluded = {gpu for name in wanted.exclude for gpu in gpus.matching(name)}
    of_providers = [name for name in clouds if name in own or _is_of(name, request.catalog.providers)]
    able = set(of_providers if choice.clouds is None else choice.clouds)
    return tuple(
        offer
        for offer in offers
        if offer.provider in able and (included is None or offer.gpu in included) and offer.gpu not in excluded
    )


def _is_of(cloud: str, providers: Sequence[str] | None) -> bool:
    """Return whether a serverless cloud belongs to one of the providers, as gcp-cloud-run does to gcp; all = None."""
    return providers is None or any(cloud == name or cloud.startswith(f"{name}-") for name in providers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halves:
    """The part of a trace that is played, cut in the middle of its time."""

    first: Requests
    second: Requests
    note: str = ""
    """What there is to say of their length."""
    is_too_busy: bool = False
    """They are over before any keeping shows: nothing is compared."""


def trace_halves(service: PreparedService, recorded_s: float | None = None, headroom_fraction: float = 0.0) -> Halves:
    """Return the two halves of a service's trace, at the rate that is planned for.

    recorded_s : how long it was recorded for; None = to its last request.
    headroom_fraction : of the fleet.

    Raises
    ------
    InputError: if it has no times, or too few requests, or goes on after its end.
    """
    trace = service.traffic.trace
    own_rps = None if trace is None or not trace.has_arrivals else mean_rate_rps(trace)
    if trace is None or own_rps is None:
        raise InputError("The trace has no arrival times, so nothing says how long nobody asks.", hint="Leave it out.")
    stretch = own_rps / service.traffic.rate_rps
    arrivals = trace.arrival_s * stretch
    n = min(trace.n_requests, MOST_BUSY_REQUESTS, max(MOST_REQUESTS, int(np.searchsorted(arrivals, 2 * LEAST_HALF_S))))
    end_s = (
        recorded_end_s(float(trace.arrival_s[-1]), recorded_s) * stretch
        if n == trace.n_requests
        else float(arrivals[n])
    )
    middle_s = end_s / 2
    at_middle = int(np.searchsorted(arrivals[:n], middle_s))
    if min(at_middle, n - at_middle) < FEWEST_REQUESTS:
        raise InputError(
            f"One half of the trace has {min(at_middle, n - at_middle)} requests, and nothing can be learnt or judged"
            f" by fewer than {FEWEST_REQUESTS}.",
            hint="Give a longer trace.",
        )
    part = partial(_part, trace, arrivals, headroom_fraction=headroom_fraction)
    is_cut, is_short = n < trace.n_requests, middle_s < LEAST_HALF_S
    return Halves(
        first=part(slice(0, at_middle), 0.0, middle_s),
        second=part(slice(at_middle, n), middle_s, end_s),
        note=_length_note(arrivals[:n], end_s, trace.n_requests, is_short=is_short),
        is_too_busy=is_cut and is_short,
    )


def _length_note(arrivals: np.ndarray, end_s: float, n_all: int, *, is_short: bool) -> str:
    """Return what to say of the requests that are played, of `n_all`."""
    n, gap_s = len(arrivals), float(np.diff(arrivals).max())
    if n < n_all and is_short:
        return (
            f"Too busy to be given back: {n:,} requests come in {format_duration(end_s)}, and the longest time without"
            f" one is {format_duration(gap_s)}. Nothing was compared."
        )
    cut = f"Only the first {n:,} of {n_all:,} requests of the trace were played." if n < n_all else ""
    short = (
        f"Each half of the trace lasts {format_duration(end_s / 2)}: how long to keep what idles hardly shows in less"
        f" than {format_duration(LEAST_HALF_S)}."
        if is_short
        else ""
    )
    return f"{cut}{short}"


def _part(
    trace: Trace, arrivals: np.ndarray, part: slice, from_s: float, to_s: float, *, headroom_fraction: float
) -> Requests:
    return Requests(
        arrival_s=arrivals[part] - from_s,
        input_tokens=trace.input_tokens[part].astype(np.float64),
        output_tokens=trace.output_tokens[part].astype(np.float64),
        duration_s=to_s - from_s,
        headroom_fraction=headroom_fraction,
    )


def _held_note(tried: Outcome, judged: Outcome) -> str:
    """Return that a way gives nothing back to speak of."""
    held = max(tried.held_fraction, judged.held_fraction)
    kept = f"kept {format_duration(judged.keep_alive_s)}" if math.isfinite(judged.keep_alive_s) else "kept for good"
    return (
        f"{judged.candidate.billing.name}, {kept}, is left out: a replica is there {held:.0%} of the time, so hardly"
        " anything is given back, and it would only be another price for one that is always on."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask(AskedService):
    """A service, and what could serve it in place of its part of the fleet."""

    halves: Halves
    by_use: tuple[PayPerUse, ...]
    clouds: CloudDoubts
    rented: tuple[Offer, ...]
    gpus: GpuCatalog
    params: EstimatorParams
    follows_load = True
    """Requests can come closer together."""

    def replayed(self, way: ScaledService, *, seed: int, load: float) -> ScaledService:
        """Return how a way fares on the judged half, with other starts and at so many times the rate.

        Raises
        ------
        InputError: if what it rents is no longer there.
        """
        kinds = self._kinds()
        found = (each for each in (*self._by_use(kinds), *self._rented(kinds)) if each.is_of(way))
        candidate = next(found, None)
        if candidate is None:
            raise InputError(
                f"{self.name} is given back on {way.offer}, which its request has not.", hint="Plan again."
            )
        judged = self.halves.second.at_load(load)
        kept_s = math.inf if way.keep_alive_s is None else way.keep_alive_s
        slos, missed = self.service.request.slo, self.choice.missed
        outcome = play(candidate, judged, slos, rule=way.rule, keep_alive_s=kept_s, missed_usd=missed, seed=seed)
        return told(outcome, judged)

    def __call__(self, plan: Plan) -> ScalingChoice:
        """Return the ways, the plan's own first."""
        first, second = self.halves.first, self.halves.second
        candidates: list[Candidate] = []
        held: list[str] = []
        ways = [always_on(plan, self.name, at_stake_usd_per_hour=self.at_stake_usd_per_hour)]
        if not self.halves.is_too_busy:
            kinds = self._kinds()
            candidates = [*self._by_use(kinds), *self._rented(kinds)]
        groups = product((ScalingWay.SCALE_TO_ZERO, ScalingWay.PAY_PER_USE), (False, True))
        for group in groups:  # what is barred takes no place from what may be chosen
            for tried in self._tried([each for each in candidates if (each.way, each.is_barred) == group]):
                outcome = play(
                    tried.candidate,
                    second,
                    self.service.request.slo,
                    rule=tried.rule,
                    keep_alive_s=tried.keep_alive_s,
                    missed_usd=self.choice.missed,
                    seed=SEED + 1,  # not the starts that the rule was learnt on
                )
                if tried.is_given_back and outcome.is_given_back:
                    ways.append(told(outcome, second, tried=tried, seen=first))
                else:
                    held.append(_held_note(tried, outcome))
        return ScalingChoice(
            service=self.service.request.name,
            chosen=chosen(ways),
            ways=tuple(ways),
            requests=len(second.arrival_s),
            judged_s=second.duration_s,
            vetoed=vetoed(ways),
            objectives=tuple(map(str, self.service.request.slo)),
            notes=tuple(note for note in (*held, *self._notes(candidates, {way.offer for way in ways})) if note),
        )

    def _kinds(self) -> list[ReplicaKind]:
        """Return every configuration on every GPU of an offer that serves a request alone within the bounds."""
        first = self.halves.first
        sizes = Sizes(
            input_tokens=float(first.input_tokens.mean()), output_tokens=max(1.0, float(first.output_tokens.mean()))
        )
        names = sorted({offer.gpu for offer in self.by_use} | {offer.gpu for offer in self.rented})
        found = (
            replica_kind(
                self.service.model,
                self.gpus.get(name),
                config,
                sizes,
                slos=self.service.request.slo,
                choice=self.choice,
                params=self.params,
            )
            for name in names
            for config in self.service.configs
        )
        return [kind for kind in found if kind is not None]

    def _by_use(self, kinds: Iterable[ReplicaKind]) -> Iterator[Candidate]:
        for kind in kinds:
            for offer in self.by_use:
                if offer.gpu == kind.gpu:
                    yield Candidate(
                        way=ScalingWay.PAY_PER_USE,
                        kind=kind,
                        billing=offer,
                        doubts=self.clouds.of(offer),
                        is_barred=self.clouds.bars(offer),
                    )

    def _rented(self, kinds: Iterable[ReplicaKind]) -> Iterator[Candidate]:
        """Yield the cheapest instance for each kind, paid as its cloud counts from when it is asked for."""
        provision_s = machine_s(self.choice)
        if provision_s is None:
            return
        for kind in kinds:
            able = [o for o in self.rented if o.gpu == kind.gpu and o.gpus_per_instance >= kind.n_gpus]
            if not able:
                continue
            offer = min(able, key=lambda each: (each.price_usd_per_hour, each.name))
            rule = billing_rule(offer) or BY_THE_SECOND
            billing = PayPerUse(
                name=offer.name,
                provider=offer.provider,
                gpu=offer.gpu,
                usd_per_gpu_s=offer.price_usd_per_hour / HOUR_S / kind.n_gpus,
                minimum_s=rule.minimum_s,
                step_s=rule.step_s,
                as_of=offer.as_of,
                source=offer.source,
            )
            yield Candidate(way=ScalingWay.SCALE_TO_ZERO, kind=kind, billing=billing, provision_s=provision_s)

    def _tried(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Return every rule on the first half, what was learnt first, for the candidate that fares best there.

        By the rules that give it back; what does not is left out of what is compared.
        """
        cheapest = sorted(candidates, key=lambda each: (each.usd_per_request, each.billing.name))[:MOST_TRIED]
        found = [self._rules(candidate) for candidate in cheapest]
        worst = (True, math.inf, math.inf)

        def best(outcomes: list[Outcome]) -> tuple[bool, float, float]:
            return min((outcome.key for outcome in outcomes if outcome.is_given_back), default=worst)

        return min(found, key=best, default=[])

    def _rules(self, candidate: Candidate) -> list[Outcome]:
        slos, missed_usd, first = self.service.request.slo, self.choice.missed, self.halves.first
        best = learnt(candidate, first, slos, missed_usd=missed_usd)
        fixed = (
            play(candidate, first, slos, rule=rule, keep_alive_s=keep_alive_s, missed_usd=missed_usd)
            for rule, keep_alive_s in other_rules(best)
        )
        return [best, *fixed]

    def _notes(self, candidates: Sequence[Candidate], shown: set[str]) -> Iterator[str]:
        """Yield what was left out, and what was taken for granted."""
        yield self.halves.note
        if self.halves.is_too_busy:
            return
        if not candidates:
            yield "No offer that is given back serves a request within the objectives, even without a cold start."
        elif all(candidate.way is ScalingWay.PAY_PER_USE for candidate in candidates):
            yield (
                NO_PROVISION
                if self.choice.provision is None
                else "No machine that is rented serves a request within the objectives."
            )
        yield engine_note(self.service.configs[0].engine)
        yield from (billing_note(offer) for offer in self.rented if offer.name in shown)
        undated = {each.provider for each in self.by_use if each.as_of is None and each.name in shown}
        if undated:
            yield f"Prices of {', '.join(sorted(undated))} have no date."
