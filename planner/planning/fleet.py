"""A PlanRequest as a question: reads the catalog, the traffic, the models and the profiles that it names."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from planner.catalog.files import read_offers_file
from planner.catalog.gpus import GpuCatalog, load_gpus
from planner.catalog.models import load_record
from planner.catalog.offers import load_offers, with_own_offers
from planner.catalog.select import STALE_PRICES, OfferFilter, plannable, select_offers
from planner.domain.hardware import EngineConfig, Market, Offer
from planner.domain.problem import (
    FleetProblem,
    Goal,
    Horizon,
    Limit,
    Measure,
    Minimum,
    Resource,
    Scope,
    ServingOption,
    Shedding,
)
from planner.domain.provenance import Warning_
from planner.errors import DataMissingError, InputError, PlannerError, Where
from planner.files.bundled import bundled_sha256
from planner.files.documents import did_you_mean
from planner.files.request import (
    WHOLE_FLEET,
    CatalogChoice,
    Constraints,
    HorizonChoice,
    Objective,
    PlanRequest,
    Service,
)
from planner.planning.horizon import (
    Rhythm,
    commitment_assumptions,
    horizon_assumptions,
    horizon_of,
    own_rhythm,
    reserved_offers,
    stated_rhythm,
)
from planner.planning.question import Question, Relaxation
from planner.planning.rules import request_rules, todays_fleet
from planner.planning.traffic import TrafficSource, read_demand
from planner.profilers.efficiency import check_engine, default_params
from planner.profilers.measured import MeasuredStore, load_measured, read_profile_file
from planner.profilers.options import OptionProfile, profile_option
from planner.units import UsdPerInstanceHour, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from planner.domain.model import ModelArchitecture
    from planner.domain.problem import ChangeCost, Rule
    from planner.domain.slo import Slo
    from planner.domain.workload import Demand
    from planner.profilers.schema import MeasuredPoint

SECONDS_PER_DAY = 86400.0

ASSUMPTIONS = (
    "A replica's load is the sum of its buckets' loads (rate / largest rate of that bucket alone within the SLO).",
    "Every bucket meets the SLO on its own, which is stricter than all requests together meeting it.",
    "The SLO enters through each GPU's throughput; this plan has not been replayed request by request.",
    "A replica stays within one instance; its power is the TDP of its GPUs.",
    "Every offer is assumed to be available in any number unless the request says otherwise.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedService:
    """A service with everything read that it names."""

    request: Service
    model: ModelArchitecture
    model_aliases: tuple[str, ...]
    demand: Demand
    traffic: TrafficSource
    configs: tuple[EngineConfig, ...]
    rhythm: Rhythm | None = None
    """Demand over the periods; None without a horizon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request with everything read that it names; from it the problem is built for any objectives."""

    services: tuple[PreparedService, ...]
    offers: tuple[Offer, ...]
    gpus: GpuCatalog
    store: MeasuredStore
    limits: tuple[Limit, ...]
    headroom_fraction: float
    shed: Shedding | None = None
    goal: Goal | None = None
    rules: tuple[Rule, ...] = ()
    change: ChangeCost | None = None
    spot_availability: float = 1.0
    """Spot capacity counts for this fraction of itself."""
    horizon: Horizon | None = None

    def problem(self, slos: Mapping[str, Sequence[Slo]]) -> FleetProblem:
        """Return the problem in which each service has the objectives `slos[its name]`."""
        options = tuple(
            option for service in self.services for option in self._options(service, slos[service.request.name])
        )
        return FleetProblem(
            demands=tuple(service.demand for service in self.services),
            options=options,
            limits=self.limits,
            headroom_fraction=self.headroom_fraction,
            shed=self.shed,
            goal=self.goal,
            rules=self.rules,
            change=self.change,
            horizon=self.horizon,
        )

    def _options(self, service: PreparedService, slos: Sequence[Slo]) -> Iterator[ServingOption]:
        profiles: dict[tuple[str, EngineConfig], OptionProfile] = {}
        shown_zero: set[tuple[str, EngineConfig]] = set()
        for offer in self.offers:
            for config in service.configs:
                if config.gpus_per_replica > offer.gpus_per_instance:
                    continue
                key = (offer.gpu, config)
                if key not in profiles:
                    profiles[key] = self._profile(service, offer.gpu, config, slos)
                profile = profiles[key]
                if not profile.throughput_rps.any():
                    if key in shown_zero and not self._is_asked_for(offer):
                        continue  # one offer is enough to carry the reason why this GPU cannot serve
                    shown_zero.add(key)
                yield ServingOption(
                    service=service.request.name,
                    offer=offer,
                    gpus_per_replica=config.gpus_per_replica,
                    throughput_rps=profile.throughput_rps * self._availability(offer),
                    config=config,
                    power_w=profile.power_w,
                    provenance=profile.provenance,
                    limiting=profile.limiting,
                )

    def _availability(self, offer: Offer) -> float:
        """Return the part of the time that a replica on `offer` runs, as far as the request says."""
        return self.spot_availability if offer.market is Market.SPOT else 1.0

    def _is_asked_for(self, offer: Offer) -> bool:
        """Return whether a minimum counts `offer`, so that it may be rented although it serves nothing."""
        return any(isinstance(rule, Minimum) and rule.scope.covers(offer) for rule in self.rules)

    def _profile(self, service: PreparedService, gpu: str, config: EngineConfig, slos: Sequence[Slo]) -> OptionProfile:
        return profile_option(
            service.model,
            self.gpus.get(gpu),
            config,
            service.demand.buckets,
            slos,
            store=self.store,
            aliases=service.model_aliases,
        )


def fleet_question(
    request: PlanRequest, *, base_dir: Path, today: date, strict: bool = False, current: Path | None = None
) -> Question:
    """Return the question that `request` asks.

    Parameters
    ----------
    base_dir : folder that relative paths in the request start from, the request file's own.
    today : the date that price ages are counted to.
    strict : refuse stale prices instead of warning of them.
    current : the plan.json that runs today; default: the request's `current`.

    Raises
    ------
    InputError: if something that the request names is wrong.
    DataMissingError: if something that it names is not known, or prices are stale and `strict` is set.
    """
    gpus = load_gpus()
    offers, catalog_warnings = read_catalog(request.catalog, gpus=gpus, base_dir=base_dir, today=today, strict=strict)
    limits = tuple(_limits(request.constraints, gpus, offers))
    if request.objective.cost_cap is not None:
        limits += (Limit(name=COST_CAP, resource=Resource.USD_PER_HOUR, bound=request.objective.cost_cap),)
    offers, uncounted = _countable(offers, limits)
    measurements = [point for name in request.profiles.files for point in read_profile_file(base_dir / name)]
    for index, service in enumerate(request.services):
        with _inside(f"services[{index}].engine.name"):
            check_engine(service.engine.name, measured={point.engine for point in measurements})
    services = tuple(
        _prepare_service(service, index, base_dir=base_dir, horizon=request.horizon)
        for index, service in enumerate(request.services)
    )
    rhythms = {service.request.name: service.rhythm for service in services if service.rhythm is not None}
    prepared = Prepared(
        services=services,
        offers=offers,
        gpus=gpus,
        store=_measured(request, measurements),
        limits=limits,
        headroom_fraction=request.constraints.headroom,
        shed=_shedding(request),
        goal=goal_of(request.objective),
        rules=_rules(request, gpus, offers),
        spot_availability=request.catalog.spot_availability,
        horizon=horizon_of(request.horizon, rhythms) if request.horizon is not None else None,
    )
    files = _hashes(request, services, base_dir)
    running = _running(request, current, base_dir=base_dir)
    if running is not None:
        name, change, digest = running
        files[name] = digest
        prepared = replace(prepared, change=change)
    slos = {service.name: tuple(service.slo) for service in request.services}
    return Question(
        problem=prepared.problem(slos),
        name=request.name,
        warnings=catalog_warnings
        + uncounted
        + tuple(warning for service in services for warning in service.demand.warnings),
        assumptions=tuple(_assumptions(request, services)),
        unchecked_gpus=_unchecked_gpus(prepared),
        inputs={"files": files, "bundled": bundled_sha256("catalogs", "profiles")},
        relaxations=tuple(_relaxations(prepared, slos)),
        problem_with_all_bounds=partial(_problem_with_all_bounds, prepared, slos),
    )


def _hashes(request: PlanRequest, services: Sequence[PreparedService], base_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of the user's that the question was read from, by its name in the request."""
    paths = {name: base_dir / name for name in (*request.catalog.files, *request.profiles.files)}
    for service in services:
        source = Path(service.model.source)  # a library model's source is no file
        if source.is_file():
            paths[service.request.model] = source
    found = {service.traffic.name: service.traffic.sha256 for service in services if service.traffic.sha256}
    rhythms = [service.rhythm for service in services if service.rhythm is not None]
    found |= {rhythm.name: rhythm.sha256 for rhythm in rhythms if rhythm.sha256}
    return found | {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


COST_CAP = "cost cap"
"""Name of the limit that objective.cost_cap sets."""


def goal_of(objective: Objective) -> Goal | None:
    """Return what to minimise; None for the cost alone."""
    if all(set(stage) == {Measure.COST} for stage in objective.minimise):
        return None
    return Goal(stages=objective.minimise, within=objective.within)


def _shedding(request: PlanRequest) -> Shedding | None:
    if request.constraints.shed == "never":
        return None
    return Shedding(priority={service.name: service.priority for service in request.services})


def _rules(request: PlanRequest, gpus: GpuCatalog, offers: Sequence[Offer]) -> tuple[Rule, ...]:
    def gpu_name(name: str, at: str) -> str:
        with _inside(at):
            return gpus.get(name).name

    owned = tuple(_owned(request.catalog, gpus))
    return tuple(request_rules(request, offers=offers, owned=owned, gpu_name=gpu_name))


def _running(request: PlanRequest, current: Path | None, *, base_dir: Path) -> tuple[str, ChangeCost, str] | None:
    """Return the name of the plan that runs today, its fleet and its sha256; None where none is given."""
    if current is None and request.current is None:
        if request.constraints.change_cost is not None:
            raise InputError(
                "Changes have a price, and nothing says what runs today.",
                hint="Give --current PLAN.json, or `current` in the request.",
                where=_at("constraints.change_cost"),
            )
        return None
    path = current or base_dir / str(request.current)
    change, digest = todays_fleet(path, request.constraints)
    return str(current or request.current), change, digest


def read_catalog(
    choice: CatalogChoice, *, gpus: GpuCatalog, base_dir: Path, today: date, strict: bool
) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers that the request allows, and warnings about their prices."""
    offers = load_offers() if choice.bundled else ()
    for name in choice.files:
        offers = with_own_offers(offers, read_offers_file(base_dir / name, gpus=gpus))
    offers += tuple(_owned(choice, gpus))
    if not offers:
        raise InputError(
            "There is nothing to rent.",
            hint="Set catalog.bundled, catalog.files or catalog.owned.",
            where=_at("catalog"),
        )
    wanted = OfferFilter(
        providers=_with_owned(choice.providers, choice),
        regions=_with_owned_regions(choice),
        gpus_include=choice.gpus.include,
        gpus_exclude=choice.gpus.exclude,
        markets=[*choice.markets, Market.OWNED] if choice.owned else choice.markets,
        max_price_age_days=choice.max_price_age / SECONDS_PER_DAY,
    )
    with _inside("catalog"):
        selection = select_offers(offers, wanted, today=today, gpus=gpus)
    usable, more_warnings = plannable(selection.offers)
    if not usable:
        lost = ", ".join(f"{count} by {name}" for name, count in selection.n_dropped_by.items() if count)
        raise DataMissingError(
            f"No offer of whole GPUs is left of {len(offers)}; dropped: {lost or 'shares of GPUs'}.",
            hint="Widen the catalog's filters.",
            where=_at("catalog"),
        )
    usable += reserved_offers(choice, usable, gpus)
    stale = [warning for warning in selection.warnings if warning.code == STALE_PRICES]
    if strict and stale:
        raise DataMissingError(
            stale[0].message, hint="Raise catalog.max_price_age, bring newer prices in catalog.files, or drop --strict."
        )
    others = tuple(warning for warning in selection.warnings if warning.code != STALE_PRICES)
    return usable, (*_at_most_a_few(stale), *others, *more_warnings)


MAX_STALE_PROVIDERS_NAMED = 3
"""A plan over the whole catalog would otherwise open with a page of old prices that it does not use."""


def _at_most_a_few(stale: list[Warning_]) -> list[Warning_]:
    """Return the warnings about stale prices, all but the oldest ones in one."""
    oldest_first = sorted(stale, key=lambda warning: -float(warning.observed or 0))
    named, rest = oldest_first[:MAX_STALE_PROVIDERS_NAMED], oldest_first[MAX_STALE_PROVIDERS_NAMED:]
    if not rest:
        return named
    message = f"{len(rest)} more providers have prices over the limit, up to {rest[0].observed} months old."
    return [*named, replace(rest[0], message=message)]


def _at(field: str) -> Where:
    return Where(field=field)


@contextmanager
def _inside(field: str) -> Iterator[None]:
    """Let an error that is raised inside say which part of the request it is about."""
    try:
        yield
    except PlannerError as error:
        if error.where is None:
            error.where = _at(field)
        elif error.where.path is None and error.where.field:
            error.where = _at(f"{field}.{error.where.field}")
        raise


def _with_owned(providers: list[str] | None, choice: CatalogChoice) -> list[str] | None:
    return [*providers, OWNED_PROVIDER] if providers is not None and choice.owned else providers


def _with_owned_regions(choice: CatalogChoice) -> list[str] | None:
    if choice.regions is None:
        return None
    return [*choice.regions, *(owned.region for owned in choice.owned)]


OWNED_PROVIDER = "owned"
"""Provider name of the user's own machines."""


def _owned(choice: CatalogChoice, gpus: GpuCatalog) -> Iterator[Offer]:
    for index, owned in enumerate(choice.owned):
        with _inside(f"catalog.owned[{index}].gpu"):
            gpu = gpus.get(owned.gpu).name
        instance = f"{owned.gpus_per_instance}x{gpu}" + (f"-{index}" if index else "")
        yield Offer(
            name=f"{OWNED_PROVIDER}/{instance}/{owned.region}/{Market.OWNED}",
            provider=OWNED_PROVIDER,
            instance_type=instance,
            region=owned.region,
            market=Market.OWNED,
            gpu=gpu,
            gpus_per_instance=owned.gpus_per_instance,
            price_usd_per_hour=UsdPerInstanceHour(owned.price * owned.gpus_per_instance),
            available=owned.count // owned.gpus_per_instance,
            source="catalog.owned of the request",
        )


def _prepare_service(service: Service, index: int, *, base_dir: Path, horizon: HorizonChoice | None) -> PreparedService:
    with _inside(f"services[{index}].model"):
        record = load_record(service.model, base_dir=base_dir)
    with _inside(f"services[{index}].workload"):
        rhythm = None if horizon is None else stated_rhythm(service, horizon, base_dir=base_dir)
        if rhythm is not None and rhythm.rate_rps is not None:
            service = service.model_copy(
                update={"workload": service.workload.model_copy(update={"rate": rhythm.rate_rps})}
            )
        demand, traffic = read_demand(service, base_dir=base_dir)
        if horizon is not None and rhythm is None:
            rhythm = own_rhythm(traffic.trace, horizon)
    with _inside(f"services[{index}].parallelism"):
        configs = tuple(engine_configs(service, record.architecture))
    aliases = tuple(record.aliases)
    return PreparedService(
        request=service,
        model=record.architecture,
        model_aliases=aliases,
        demand=demand,
        traffic=replace(traffic, trace=None),
        configs=configs,
        rhythm=rhythm,
    )


def engine_configs(service: Service, model: ModelArchitecture) -> Iterator[EngineConfig]:
    """Yield the engine configurations that compete for `service`.

    A tensor-parallel degree must divide the model's query heads; others are left out, as engines refuse them.
    """
    heads = {group.n_query_heads for group in model.layers if group.n_query_heads}
    degrees = [tp for tp in sorted(set(service.parallelism.tp)) if all(count % tp == 0 for count in heads)]
    if not degrees:
        raise InputError(
            f"None of the tensor-parallel degrees {service.parallelism.tp} divides the {sorted(heads)} attention heads"
            f" of {model.name}.",
            hint="Set parallelism.tp.",
        )
    precisions: Sequence[str] = service.precision or [model.native_precision]
    for precision in precisions:
        for pp in sorted(set(service.parallelism.pp)):
            for tp in degrees:
                yield EngineConfig(
                    engine=service.engine.name,
                    engine_version=service.engine.version,
                    precision=precision,
                    tensor_parallel=tp,
                    pipeline_parallel=pp,
                    max_num_seqs=service.engine.max_num_seqs,
                    max_num_batched_tokens=service.engine.max_num_batched_tokens,
                )


def _measured(request: PlanRequest, own: Sequence[MeasuredPoint]) -> MeasuredStore:
    if request.profiles.prefer == "estimated":
        return MeasuredStore.empty()
    return load_measured().with_rows(own)


def _limits(constraints: Constraints, gpus: GpuCatalog, offers: Sequence[Offer]) -> Iterator[Limit]:
    if constraints.budget is not None:
        yield Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=constraints.budget)
    regions = {offer.region for offer in offers}
    for site, watts in constraints.power.items():
        if site != WHOLE_FLEET and site not in regions:
            raise InputError(
                f"There is no region {site!r} to limit the power of.",
                hint=f"Regions with offers: {', '.join(sorted(regions)[:20])}.",
                where=_at(f"constraints.power.{site}"),
            )
        scope = Scope() if site == WHOLE_FLEET else Scope(region=site)
        yield Limit(name=f"power {site}", resource=Resource.WATTS, bound=watts, scope=scope)
    for name, count in constraints.available.items():
        with _inside(f"constraints.available.{name}"):
            gpu = gpus.get(name).name
        yield Limit(name=f"available {gpu}", resource=Resource.GPUS, bound=count, scope=Scope(gpu=gpu))
    for index, quota in enumerate(constraints.quotas):
        with _inside(f"constraints.quotas[{index}].gpu"):
            gpu_name = gpus.get(quota.gpu).name if quota.gpu else None
        scope = Scope(
            provider=quota.provider, region=quota.region, gpu=gpu_name, market=quota.market, offer=quota.offer
        )
        _check_scope(scope, offers, f"constraints.quotas[{index}]")
        parts = [part for part in (quota.provider, quota.region, gpu_name, quota.market, quota.offer) if part]
        for resource in (Resource.GPUS, Resource.VCPUS, Resource.INSTANCES):
            bound = getattr(quota, resource.value)
            if bound is not None:
                yield Limit(name=f"quota {' '.join([*parts, resource])}", resource=resource, bound=bound, scope=scope)


def _check_scope(scope: Scope, offers: Sequence[Offer], field: str) -> None:
    """Refuse a quota that covers no offer: it would look like a limit and be none."""
    if any(scope.covers(offer) for offer in offers):
        return
    for key in ("provider", "region", "gpu", "market"):
        wanted, known = getattr(scope, key), sorted({str(getattr(offer, key)) for offer in offers})
        if wanted is not None and str(wanted) not in known:
            hint = did_you_mean(str(wanted), known) or f"There are: {', '.join(known[:12])}."
            raise InputError(f"No offer that may be rented has the {key} {str(wanted)!r}.", hint=hint, where=_at(field))
    raise InputError("No offer that may be rented is covered by this quota.", where=_at(field))


def _countable(offers: tuple[Offer, ...], limits: Sequence[Limit]) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers without those that a vCPU quota covers but whose vCPUs are not known, and a warning."""
    quotas = [limit for limit in limits if limit.resource is Resource.VCPUS]
    known = tuple(
        offer for offer in offers if offer.vcpus is not None or not any(quota.scope.covers(offer) for quota in quotas)
    )
    n_unknown = len(offers) - len(known)
    if not n_unknown:
        return offers, ()
    message = f"{n_unknown} offers that a vCPU quota covers do not say how many vCPUs they have; they are left out."
    return known, (Warning_(code=UNKNOWN_VCPUS, message=message, observed=n_unknown),)


UNKNOWN_VCPUS = "W204"


def _assumptions(request: PlanRequest, services: Sequence[PreparedService]) -> Iterator[str]:
    for service in services:
        formats = ", ".join(dict.fromkeys(config.precision for config in service.configs))
        engine = service.request.engine.name
        yield f"{service.request.name}: {service.demand.basis}; weights in {formats}; engine {engine}."
    yield f"{request.constraints.headroom:.0%} headroom above the planned rate."
    if request.catalog.spot_availability < 1:
        yield (
            f"A spot replica runs {request.catalog.spot_availability:.4g} of the time: its throughput counts for so "
            "much, whenever it is reclaimed."
        )
    change = request.constraints.change_cost
    if change is not None:
        yield (
            f"A replica that starts costs {change.start:g} USD and one that stops {change.stop:g} USD, spread over "
            f"{format_duration(change.horizon)}; new replicas run beside the old ones until traffic has moved."
        )
    if request.horizon is not None:
        rhythms = {service.request.name: service.rhythm for service in services if service.rhythm is not None}
        yield from horizon_assumptions(request.horizon, rhythms)
    yield from commitment_assumptions(request.catalog)
    yield from ASSUMPTIONS


def _unchecked_gpus(prepared: Prepared) -> dict[str, str]:
    """Return GPU -> architecture where neither the estimator was fitted nor one of the usable figures was measured."""
    specs = {offer.gpu: prepared.gpus.get(offer.gpu) for offer in prepared.offers}
    params = default_params()
    found = (prepared.gpus.find(name) for name in {point.gpu for point in prepared.store.points})
    measured = {prepared.gpus.by_name[alias.gpu].architecture for alias in found if alias is not None}
    return {
        name: spec.architecture
        for name, spec in specs.items()
        if not params.is_fitted(spec) and spec.architecture not in measured
    }


def _relaxations(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]]) -> Iterator[Relaxation]:
    for service, objectives in slos.items():
        for index, slo in enumerate(objectives):
            with_bound = partial(_problem_with_bound, prepared, slos, service, index)
            yield Relaxation(service=service, slo=slo, problem_with_bound=with_bound)


def _problem_with_all_bounds(prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]], factor: float) -> FleetProblem:
    """Return the problem with every bound of every service `factor` times as large."""
    looser = {
        service: tuple(replace(slo, bound_s=slo.bound_s * factor) for slo in objectives)
        for service, objectives in slos.items()
    }
    return prepared.problem(looser)


def _problem_with_bound(
    prepared: Prepared, slos: Mapping[str, tuple[Slo, ...]], service: str, index: int, bound_s: float
) -> FleetProblem:
    """Return the problem with the bound of one service's objective number `index` changed to `bound_s`."""
    objectives = list(slos[service])
    objectives[index] = replace(objectives[index], bound_s=bound_s)
    return prepared.problem({**slos, service: tuple(objectives)})
