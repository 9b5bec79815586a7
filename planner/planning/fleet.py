"""A PlanRequest as a question: reads the catalog, the traffic, the models and the profiles that it names."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from planner.catalog.gpus import GpuCatalog, load_gpus
from planner.domain.problem import (
    Goal,
    Limit,
    Measure,
    Resource,
    Shedding,
)
from planner.errors import InputError
from planner.files.bundled import bundled_sha256
from planner.files.request.constraints import LARGEST_INSTANCES
from planner.planning.adapter_moves import with_moves
from planner.planning.adapter_tiers import with_tiers
from planner.planning.adapters import (
    adapter_assumptions,
    check_adapter_request,
)
from planner.planning.catalog import SECONDS_PER_DAY, owned_offers, read_catalog
from planner.planning.deferrable import job_assumptions, prepare_jobs
from planner.planning.disaggregation import check_engines, disaggregation_assumptions
from planner.planning.egress import egress_assumptions, egress_of
from planner.planning.energy import (
    ENERGY_ASSUMPTION,
    counts_carbon,
    energy_of,
    energy_rules,
    of_known_intensity,
    price_assumptions,
)
from planner.planning.horizon import (
    commitment_assumptions,
    horizon_assumptions,
    horizon_of,
)
from planner.planning.limits import countable, limits_of
from planner.planning.located import at, inside
from planner.planning.loosened import disaggregation_ways_out, problem_with_all_bounds, relaxations
from planner.planning.power_caps import check_power_caps, power_cap_assumptions
from planner.planning.prepared import Prepared
from planner.planning.question import AdapterSource, Question, ReplaySource
from planner.planning.robust import Prospect, prospects_of, robust_assumptions
from planner.planning.rules import request_rules, todays_fleet
from planner.planning.scaling_clouds import cloud_warnings
from planner.planning.scaling_prices import PriceAges
from planner.planning.scaling_request import check_scaling_request, scaling_assumptions
from planner.planning.services import PreparedService, prepare_service
from planner.planning.spot import availability, recovery_time_s, spot_assumptions, with_reclaims
from planner.planning.unused import unused_settings
from planner.planning.zones import asks_for_zones, check_zones, offers_by_zone, zone_assumptions
from planner.profilers.efficiency import check_engine, default_params
from planner.profilers.measured import MeasuredStore, load_measured, read_profile_file
from planner.profilers.params_file import read_params
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import date

    from planner.domain.hardware import GpuSpec, Offer
    from planner.domain.plan import AdapterPlan, Plan
    from planner.domain.problem import ChangeCost, FleetProblem, Rule
    from planner.files.request import PlanRequest
    from planner.files.request.objective import Objective
    from planner.optimize import OtherWay
    from planner.planning.question import ScalingAsk
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.schema import MeasuredPoint

INSTANCES_LOST = (
    "An instance that is lost takes as many replicas of each option on its offer as fit on it: which replicas share an "
    "instance is not planned."
)

UNPROVEN = "The SLO enters through each GPU's throughput; bursts and mixed sizes come on top (`gpuplan simulate`)."
"""Of plans that are not replayed."""

ASSUMPTIONS = (
    "A replica's load is the sum of its buckets' loads (rate / largest rate of that bucket alone within the SLO).",
    "Every bucket meets the SLO on its own, which is stricter than all requests together meeting it.",
    UNPROVEN,
    "A replica stays within one instance; its peak power is the TDP of its GPUs, or the power limit set on them.",
    "Every offer is assumed to be available in any number unless the request says otherwise.",
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
    check_zones(request.catalog, offers)
    if asks_for_zones(request):
        offers = offers_by_zone(request.catalog, offers)
    offers = with_reclaims(request, offers)
    limits = tuple(limits_of(request.constraints, gpus, offers))
    if request.objective.cost_cap is not None:
        limits += (Limit(name=COST_CAP, resource=Resource.USD_PER_HOUR, bound=request.objective.cost_cap),)
    offers, uncounted = countable(offers, limits)
    energy = energy_of(request, offers, base_dir=base_dir)
    offers, unknown_intensity = of_known_intensity(offers, energy) if counts_carbon(request) else (offers, ())
    measurements = [point for name in request.profiles.files for point in read_profile_file(base_dir / name)]
    for index, service in enumerate(request.services):
        with inside(f"services[{index}].engine.name"):
            check_engine(service.engine.name, measured={point.engine for point in measurements})
    check_engines(request.services)
    check_adapter_request(request)
    check_scaling_request(request)
    services = tuple(
        prepare_service(service, index, base_dir=base_dir, horizon=request.horizon)
        for index, service in enumerate(request.services)
    )
    rhythms = {service.request.name: service.rhythm for service in services if service.rhythm is not None}
    store, params = _measured(request, measurements), _params(request, base_dir)
    prepared = Prepared(
        services=services,
        offers=offers,
        gpus=gpus,
        store=store,
        params=params,
        limits=limits,
        headroom_fraction=request.constraints.headroom,
        shed=_shedding(request),
        goal=goal_of(request.objective),
        rules=_rules(request, gpus, offers),
        availability={offer.name: availability(request, offer) for offer in offers},
        horizon=horizon_of(request.horizon, rhythms) if request.horizon is not None else None,
        energy=energy,
        egress=egress_of(request, offers, gpus=gpus, base_dir=base_dir),
        round_trip_s=(request.catalog.egress.round_trip or 0.0) if request.catalog.egress is not None else 0.0,
        prospects=_prospects(request, services, offers, base_dir),
        jobs=prepare_jobs(request, services, offers, gpus=gpus, store=store, params=params, base_dir=base_dir),
    )
    check_power_caps(services, _specs(offers), "services")
    check_power_caps(prepared.jobs, _specs(offers), "deferrable")
    files = _hashes(request, services, base_dir) | dict(job.file for job in prepared.jobs if job.file is not None)
    for prospect in prepared.prospects:
        files |= prospect.files
    running = _running(request, current, base_dir=base_dir)
    adapters_today: tuple[AdapterPlan, ...] = ()
    if running is not None:
        name, change, adapters_today, digest = running
        files[name] = digest
        prepared = replace(prepared, change=change)
    slos = {service.name: tuple(service.slo) for service in request.services}
    max_age_days = request.catalog.max_price_age / SECONDS_PER_DAY
    prices = PriceAges(today=today, max_age_days=max_age_days, is_strict=strict)
    return Question(
        problem=prepared.problem(slos),
        name=request.name,
        warnings=catalog_warnings
        + uncounted
        + unknown_intensity
        + tuple(warning for service in services for warning in service.demand.warnings),
        assumptions=(
            *_assumptions(request, services, offers, params),
            *job_assumptions(prepared.jobs, services, request.horizon),
        ),
        unchecked_gpus=_unchecked_gpus(prepared),
        inputs={"files": files, "bundled": bundled_sha256("catalogs", "profiles")},
        relaxations=tuple(relaxations(prepared, slos)),
        replay=ReplaySource(
            engine=prepared.engine,
            traffic={service.request.name: service.traffic for service in services},
            slos=slos,
            adapters={
                service.request.name: AdapterSource(
                    sizes=service.adapters.sizes, traces=service.adapters.traces, slos=service.adapters.own_slos
                )
                for service in services
                if service.adapters is not None
            },
            start_up_s=request.horizon.start_up if request.horizon is not None else None,
            spot_recovery_s=recovery_time_s(request),
        ),
        problem_with_all_bounds=partial(problem_with_all_bounds, prepared, slos),
        disaggregation=disaggregation_ways_out(prepared, slos),
        scaling=_scaling(prepared, request, base_dir, prices),
        scaling_warnings=lambda choices: (*prices.warnings(choices), *cloud_warnings(choices)),
        preloaded=partial(_with_replicas_told, prepared=prepared, today=adapters_today),
        compared=_comparison(prepared, request, base_dir),
    )


def _with_replicas_told(problem: FleetProblem, plan: Plan, *, prepared: Prepared, today: Sequence[AdapterPlan]) -> Plan:
    """Return `plan` with what its replicas with adapters have ready, and which adapters are elsewhere today."""
    kinds = {each.request.name: each.adapters.kinds for each in prepared.services if each.adapters is not None}
    found = with_tiers(problem, plan, kinds=kinds, gpus=prepared.gpus, availability=prepared.availability)
    return with_moves(problem, found, today)


def _comparison(
    prepared: Prepared, request: PlanRequest, base_dir: Path
) -> Callable[[Question, Plan, Sequence[OtherWay]], Plan] | None:
    """Return what puts all ways to serve the adapters of a plan side by side; None where no service has any."""
    if all(service.adapters is None for service in prepared.services):
        return None

    def compare(question: Question, plan: Plan, others: Sequence[OtherWay]) -> Plan:
        from planner.planning.adapter_comparison import compared  # noqa: PLC0415 - as in `_scaling`

        return compared(
            question,
            plan,
            others,
            request=request,
            services=prepared.services,
            gpus=prepared.gpus,
            params=prepared.params,
            base_dir=base_dir,
        )

    return compare


def _scaling(prepared: Prepared, request: PlanRequest, base_dir: Path, prices: PriceAges) -> tuple[ScalingAsk, ...]:
    if all(service.scale_to_zero is None for service in request.services):
        return ()
    from planner.planning.scaling import scaling_asks  # noqa: PLC0415 - the replay takes a third of a second to import

    return scaling_asks(
        request,
        prepared.services,
        prepared.offers,
        gpus=prepared.gpus,
        params=prepared.params,
        prices=prices,
        base_dir=base_dir,
    )


def _prospects(
    request: PlanRequest, services: Sequence[PreparedService], offers: Sequence[Offer], base_dir: Path
) -> tuple[Prospect, ...]:
    if request.robust is None:
        return ()
    return tuple(prospects_of(request.robust, services, [offer.gpu for offer in offers], base_dir=base_dir))


def _hashes(request: PlanRequest, services: Sequence[PreparedService], base_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of the user's that the question was read from, by its name in the request."""
    names = [*request.catalog.files, *request.profiles.files]
    if request.profiles.parameters is not None:
        names.append(request.profiles.parameters)
    if request.catalog.carbon_by_hour is not None:
        names.append(request.catalog.carbon_by_hour)
    paths = {name: base_dir / name for name in names}
    for service in services:
        if service.request.scale_to_zero is not None:
            paths |= {name: base_dir / name for name in service.request.scale_to_zero.files}
        if service.adapters is not None:
            paths |= {name: base_dir / name for name in service.adapters.files}
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
    def gpu_name(name: str, field: str) -> str:
        with inside(field):
            return gpus.get(name).name

    owned = tuple(owned_offers(request.catalog, gpus))
    rules = request_rules(request, offers=offers, owned=owned, gpu_name=gpu_name)
    return (*rules, *energy_rules(request.constraints))


def _running(
    request: PlanRequest, current: Path | None, *, base_dir: Path
) -> tuple[str, ChangeCost, tuple[AdapterPlan, ...], str] | None:
    """Return the name of the plan that runs today, its fleet, adapters and sha256; None where none is given."""
    if current is None and request.current is None:
        if request.constraints.change_cost is not None:
            raise InputError(
                "Changes have a price, and nothing says what runs today.",
                hint="Give --current PLAN.json, or `current` in the request.",
                where=at("constraints.change_cost"),
            )
        return None
    path = current or base_dir / str(request.current)
    change, adapters, digest = todays_fleet(path, request.constraints)
    return str(current or request.current), change, adapters, digest


def _measured(request: PlanRequest, own: Sequence[MeasuredPoint]) -> MeasuredStore:
    if request.profiles.prefer == "estimated":
        return MeasuredStore.empty()
    return load_measured().with_rows(own)


def _params(request: PlanRequest, base_dir: Path) -> EstimatorParams:
    if request.profiles.parameters is None:
        return default_params()
    return read_params(base_dir / request.profiles.parameters)


def _assumptions(
    request: PlanRequest, services: Sequence[PreparedService], offers: Sequence[Offer], params: EstimatorParams
) -> Iterator[str]:
    for service in services:
        formats = ", ".join(dict.fromkeys(config.precision for config in service.configs))
        engine = service.request.engine.name
        yield f"{service.request.name}: {service.demand.basis}; weights in {formats}; engine {engine}."
    yield f"{request.constraints.headroom:.0%} headroom above the planned rate."
    for service in services:
        if service.adapters is not None:
            is_at_peak = service.request.workload.peak is not None
            name = service.request.name
            yield from adapter_assumptions(name, service.adapters, params=params, is_at_peak=is_at_peak)
    yield from scaling_assumptions(services)
    yield from spot_assumptions(request, offers)
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
    yield from egress_assumptions(request, offers)
    yield from price_assumptions(request)
    yield from power_cap_assumptions(services, _specs(offers))
    yield ENERGY_ASSUMPTION
    if asks_for_zones(request):
        yield from zone_assumptions(request.catalog, offers)
    if any(LARGEST_INSTANCES.fullmatch(loss) for loss in request.constraints.survive):
        yield INSTANCES_LOST
    yield from disaggregation_assumptions(request, offers)
    if request.robust is not None:
        yield from robust_assumptions(request.robust, request.constraints.headroom)
    yield from unused_settings(request, offers)
    yield from ASSUMPTIONS


def _specs(offers: Sequence[Offer]) -> list[GpuSpec]:
    """Return the GPUs that `offers` have, by name."""
    return [load_gpus().get(name) for name in sorted({offer.gpu for offer in offers})]


def _unchecked_gpus(prepared: Prepared) -> dict[str, str]:
    """Return GPU -> architecture where neither the estimator was fitted nor one of the usable figures was measured."""
    specs = {offer.gpu: prepared.gpus.get(offer.gpu) for offer in prepared.offers}
    params = prepared.params
    found = (prepared.gpus.find(name) for name in {point.gpu for point in prepared.store.points})
    measured = {prepared.gpus.by_name[alias.gpu].architecture for alias in found if alias is not None}
    return {
        name: spec.architecture
        for name, spec in specs.items()
        if not params.is_fitted(spec) and spec.architecture not in measured
    }
