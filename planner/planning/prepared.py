"""A request with everything read that it names, and the options that it has of serving each service."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.hardware import EngineConfig
from planner.domain.problem import (
    FleetProblem,
    Goal,
    Horizon,
    Limit,
    Minimum,
    ServingOption,
    Shedding,
)
from planner.planning.adapters import (
    CONTEXT_BYTES,
    has_host_room,
    hostings,
    room_of,
)
from planner.planning.deferrable import PreparedJob, own_options
from planner.planning.disaggregation import handover_of, stages
from planner.planning.egress import slos_from
from planner.planning.power_caps import capped_configs
from planner.profilers.adapters import replica_bytes
from planner.profilers.options import OptionProfile, profile_option
from planner.profilers.power import capped
from planner.simulate.steps import EngineKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.adapters import ReplicaBytes
    from planner.domain.egress import Egress
    from planner.domain.energy import Energy
    from planner.domain.hardware import Offer
    from planner.domain.problem import ChangeCost, Rule
    from planner.domain.slo import Slo
    from planner.domain.workload import Bucket
    from planner.planning.adapters import Hosting, ServiceAdapters
    from planner.planning.robust import Prospect
    from planner.planning.services import PreparedService
    from planner.profilers.adapters import AdapterRoom
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.measured import MeasuredStore
    from planner.profilers.stages import Stage

_ProfileKey: TypeAlias = "tuple[str, EngineConfig, Stage | None, tuple[float, ...]]"
"""GPU, configuration, stage, and the bounds that must be met there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request with everything read that it names; from it the problem is built for any objectives."""

    services: tuple[PreparedService, ...]
    offers: tuple[Offer, ...]
    gpus: GpuCatalog
    store: MeasuredStore
    params: EstimatorParams
    limits: tuple[Limit, ...]
    headroom_fraction: float
    shed: Shedding | None = None
    goal: Goal | None = None
    rules: tuple[Rule, ...] = ()
    change: ChangeCost | None = None
    availability: Mapping[str, float] = field(default_factory=dict)
    """Offer -> the part of the time that a replica there runs, where that is not always."""
    horizon: Horizon | None = None
    energy: Energy | None = None
    egress: Egress | None = None
    round_trip_s: float = 0.0
    """Between two regions."""
    prospects: tuple[Prospect, ...] = ()
    """What the fleet must survive."""
    network_factor: float = 1.0
    """How many times as fast as stated networks are taken to be."""
    jobs: tuple[PreparedJob, ...] = ()

    def problem(self, slos: Mapping[str, Sequence[Slo]]) -> FleetProblem:
        """Return the problem in which each service has the objectives `slos[its name]`."""
        options = tuple(
            option for service in self.services for option in self._options(service, slos[service.request.name])
        )
        return FleetProblem(
            demands=tuple(service.demand for service in self.services),
            options=options + tuple(own_options(self.jobs, self.offers, self.availability, self.gpus)),
            limits=self.limits,
            headroom_fraction=self.headroom_fraction,
            shed=self.shed,
            goal=self.goal,
            rules=self.rules + tuple(prospect.scenario for prospect in self.prospects),
            change=self.change,
            horizon=self.horizon,
            energy=self.energy,
            egress=self.egress,
            jobs=tuple(item.job for item in self.jobs),
            tenancies=tuple(item.adapters.tenancy for item in self.services if item.adapters is not None),
        )

    def _options(self, service: PreparedService, slos: Sequence[Slo]) -> Iterator[ServingOption]:
        if service.adapters is not None:
            yield from self._adapter_options(service, service.adapters, slos)
            return
        profiles: dict[_ProfileKey, OptionProfile] = {}
        scenarios: dict[_ProfileKey, dict[str, NDArray[np.float64]]] = {}
        shown_zero: set[_ProfileKey] = set()
        for offer in self.offers:
            met = slos_from(slos, service.request.name, offer, self.egress, self.round_trip_s)
            for config, stage in self._ways(service, offer, met):
                key = (offer.gpu, config, stage, tuple(slo.bound_s for slo in met))
                if key not in profiles:
                    profiles[key] = self._profile(service, offer.gpu, config, met, stage=stage)
                    scenarios[key] = self._scenario_rps(service, offer.gpu, config, met, profiles[key], stage=stage)
                profile = profiles[key]
                if not any(rates.any() for rates in (profile.throughput_rps, *scenarios[key].values())):
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
                    idle_power_w=profile.idle_power_w,
                    busy_power_w=profile.busy_power_w,
                    provenance=profile.provenance,
                    limiting=profile.limiting,
                    scenario_rps={name: rates * self._availability(offer) for name, rates in scenarios[key].items()},
                    role=Role.BOTH if stage is None else stage.role,
                    handover=handover_of(stage, config, profile),
                    job_rates={} if stage is not None else self._job_rates(service, offer, config),
                )

    def _adapter_options(
        self, service: PreparedService, adapters: ServiceAdapters, slos: Sequence[Slo]
    ) -> Iterator[ServingOption]:
        """Yield the options of a service with adapters: every configuration with every number of slots."""

        def profile_of(
            offer: Offer, config: EngineConfig, asked: Sequence[Slo], room: AdapterRoom | None = None
        ) -> OptionProfile:
            met = slos_from(asked, service.request.name, offer, self.egress, self.round_trip_s)
            return self._profile(service, offer.gpu, config, met, buckets=adapters.sizes.buckets, adapters=room)

        tokens = np.array([(each.input_tokens or 0.0) + (each.output_tokens or 0.0) for each in adapters.sizes.buckets])

        def beside_of(gpu: str, config: EngineConfig, under_way: NDArray[np.float64]) -> ReplicaBytes:
            return replica_bytes(
                service.model,
                self.gpus.get(gpu),
                config,
                self.params,
                tokens=tokens,
                under_way=under_way,
                context_bytes=CONTEXT_BYTES,
            )

        found: dict[tuple[str, EngineConfig, bool], tuple[Hosting, ...]] = {}
        for offer in self.offers:
            for config in capped_configs(service, self.gpus.get(offer.gpu)):
                if config.gpus_per_replica > offer.gpus_per_instance:
                    continue
                is_away = self.egress is not None and self.egress.away(service.request.name, offer) > 0
                key = (offer.gpu, config, is_away)
                if key not in found:
                    profiles, beside = partial(profile_of, offer, config), partial(beside_of, offer.gpu, config)
                    tensor_parallel = config.tensor_parallel
                    found[key] = tuple(hostings(adapters, slos, profiles, beside, tensor_parallel=tensor_parallel))
                for hosting in found[key]:
                    if not has_host_room(adapters, hosting.slots, offer, config.gpus_per_replica):
                        continue
                    yield ServingOption(
                        service=service.request.name,
                        offer=offer,
                        gpus_per_replica=config.gpus_per_replica,
                        throughput_rps=hosting.throughput_rps * self._availability(offer),
                        config=config,
                        power_w=hosting.profile.power_w,
                        idle_power_w=hosting.profile.idle_power_w,
                        busy_power_w=hosting.profile.busy_power_w,
                        provenance=hosting.provenance,
                        limiting=hosting.limiting,
                        slots=hosting.slots,
                        loose_rps=None if hosting.loose_rps is None else hosting.loose_rps * self._availability(offer),
                    )

    def _scenario_rps(
        self,
        service: PreparedService,
        gpu: str,
        config: EngineConfig,
        slos: Sequence[Slo],
        profile: OptionProfile,
        *,
        stage: Stage | None,
    ) -> dict[str, NDArray[np.float64]]:
        """Return the rates of a configuration in the scenarios in which they differ."""

        def profile_of(buckets: Sequence[Bucket], shortfall: NDArray[np.float64] | None) -> OptionProfile:
            return self._profile(service, gpu, config, slos, buckets=buckets, shortfall=shortfall, stage=stage)

        found = {
            prospect.scenario.name: prospect.throughput_rps(service.request.name, gpu, profile, profile_of)
            for prospect in self.prospects
        }
        return {name: rates for name, rates in found.items() if rates is not None}

    def _ways(
        self, service: PreparedService, offer: Offer, slos: Sequence[Slo]
    ) -> Iterator[tuple[EngineConfig, Stage | None]]:
        """Yield the configurations that fit an instance of `offer`, with the part of serving that each would do."""
        for config in capped_configs(service, self.gpus.get(offer.gpu)):
            if config.gpus_per_replica <= offer.gpus_per_instance:
                for stage in stages(service.request, offer, config, slos, network_factor=self.network_factor):
                    yield config, stage

    def _job_rates(self, service: PreparedService, offer: Offer, config: EngineConfig) -> dict[str, float]:
        """Return how fast an idle replica of `service` does the jobs that may use it, units per second by job."""
        rates = (pair for job in self.jobs for pair in job.harvested_rates(service, offer.gpu, config))
        return {name: rate * self._availability(offer) for name, rate in rates}

    def engine(self, option: ServingOption, sent_rps: Mapping[int, float]) -> EngineKind:
        """Return one replica of `option` that serves so many req/s of each bucket of its service, by its number.

        Measurements may say another speed for every bucket; a step is shared by all, so it goes at their mean, by load.
        """
        service = next(service for service in self.services if service.request.name == option.service)
        config = option.config or EngineConfig()
        gpu, cap_w = self.gpus.get(option.offer.gpu), config.power_cap_w
        sizes = None if service.adapters is None else service.adapters.sizes.buckets  # every adapter's, in one mix
        profile = self._profile(service, option.offer.gpu, config, service.request.slo, buckets=sizes)
        if sizes is None:
            loads = {b: rate / option.throughput_rps[b] for b, rate in sent_rps.items() if rate > 0}
        else:
            rates = enumerate(profile.throughput_rps.tolist())
            loads = {b: sizes[b].rate_rps / rate for b, rate in rates if rate > 0}
        total = sum(loads.values())
        return EngineKind(
            model=service.model,
            gpu=gpu if cap_w is None else capped(gpu, cap_w),
            config=config,
            params=self.params,
            speed=sum(load * float(profile.speed[b]) for b, load in loads.items()) / total if total else 1.0,
            room=room_of(option.slots),
        )

    def _availability(self, offer: Offer) -> float:
        """Return the part of the time that a replica on `offer` runs."""
        return self.availability.get(offer.name, 1.0)

    def _is_asked_for(self, offer: Offer) -> bool:
        """Return whether a minimum counts `offer`, so that it may be rented although it serves nothing."""
        return any(isinstance(rule, Minimum) and rule.scope.covers(offer) for rule in self.rules)

    def _profile(
        self,
        service: PreparedService,
        gpu: str,
        config: EngineConfig,
        slos: Sequence[Slo],
        *,
        buckets: Sequence[Bucket] | None = None,
        shortfall: NDArray[np.float64] | None = None,
        stage: Stage | None = None,
        adapters: AdapterRoom | None = None,
    ) -> OptionProfile:
        return profile_option(
            service.model,
            self.gpus.get(gpu),
            config,
            service.demand.buckets if buckets is None else buckets,
            slos,
            store=self.store,
            params=self.params,
            aliases=service.model_aliases,
            shortfall=shortfall,
            stage=stage,
            adapters=adapters,
        )
