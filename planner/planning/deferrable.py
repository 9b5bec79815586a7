"""The jobs of a request, with everything read that they name, and how fast each GPU does them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.models import load_record
from planner.domain.jobs import Job
from planner.domain.problem import ServingOption
from planner.domain.provenance import ProvenanceKind
from planner.errors import InputError
from planner.planning.located import at, inside
from planner.planning.power_caps import capped_configs
from planner.planning.services import engine_configs
from planner.profilers.options import peak_power_w, profile_option
from planner.profilers.power import gpu_draw
from planner.profilers.training import TRAINING_FORMAT, Training, training_estimate
from planner.units import WattsPerReplica, format_count, format_duration
from planner.workload.buckets import constant_demand
from planner.workload.histogram import demand_from_histogram, read_histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.hardware import EngineConfig, GpuSpec, Offer
    from planner.domain.model import ModelArchitecture
    from planner.domain.provenance import Provenance
    from planner.domain.workload import Demand
    from planner.files.request import PlanRequest
    from planner.files.request.deferrable import Deferrable
    from planner.files.request.horizon import HorizonChoice
    from planner.planning.services import PreparedService
    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.measured import MeasuredStore
    from planner.profilers.options import OptionProfile

FINE_TUNING = "fine-tuning"
"""What plans call the engine of replicas that train."""
_LEAST_CERTAIN = tuple(reversed(ProvenanceKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRate:
    """How fast ONE replica with nothing else to do does a job's work."""

    units_per_s: float
    """0 = it cannot."""
    provenance: Provenance | None
    limiting: str
    power_w: WattsPerReplica | None
    idle_power_w: WattsPerReplica | None
    busy_power_w: WattsPerReplica | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A job with everything read that it names."""

    request: Deferrable
    job: Job
    model: ModelArchitecture
    configs: tuple[EngineConfig, ...]
    rates: Mapping[tuple[str, EngineConfig], WorkRate]
    """By GPU and configuration: its own, and those of services whose replicas it may use."""
    file: tuple[str, str] | None = None
    """Name and SHA-256 of the histogram that it was read from."""

    def harvested_rates(self, service: PreparedService, gpu: str, config: EngineConfig) -> Iterator[tuple[str, float]]:
        """Yield the job's name and its rate on a replica of `service`, if it may use that."""
        if self.may_use(service, config):
            rate = self.rates[gpu, config].units_per_s
            if rate > 0:
                yield self.job.name, rate

    def may_use(self, service: PreparedService, config: EngineConfig) -> bool:
        """Return whether the job may use what requests leave of a replica: the same model in a format it allows."""
        formats = {own.precision for own in self.configs}
        is_allowed = self.request.may_harvest and config.precision in formats
        return is_allowed and service.model.name == self.model.name

    def has_host(self, service: PreparedService) -> bool:
        """Return whether the job may use any replica of `service`."""
        return any(self.may_use(service, config) for config in service.configs)


def prepare_jobs(
    request: PlanRequest,
    services: Sequence[PreparedService],
    offers: Iterable[Offer],
    *,
    gpus: GpuCatalog,
    store: MeasuredStore,
    params: EstimatorParams,
    base_dir: Path,
) -> tuple[PreparedJob, ...]:
    """Return the jobs of `request` with everything read that they name.

    Raises
    ------
    InputError: if one of them is wrong.
    DataMissingError: if a model is not known.
    """
    types = sorted({offer.gpu for offer in offers})
    found = []
    for index, item in enumerate(request.deferrable):
        where = f"deferrable[{index}]"
        _check_times(item, request.horizon, where)
        with inside(f"{where}.model"):
            record = load_record(item.model, base_dir=base_dir)
        with inside(f"{where}.parallelism"):
            configs = tuple(engine_configs(item, record.architecture))
        if item.kind == "fine-tune":
            configs = tuple(replace(each, engine=FINE_TUNING, precision=TRAINING_FORMAT) for each in configs)
        with inside(f"{where}.workload"):
            demand, file = _sizes(item, base_dir)
        job = PreparedJob(
            request=item,
            job=_job(item, demand, params),
            model=record.architecture,
            configs=tuple(dict.fromkeys(configs)),
            rates={},
            file=file,
        )
        users: list[PreparedService | PreparedJob] = [job, *(each for each in services if job.has_host(each))]
        rates = {
            (gpu, config): _rate(
                job, gpus.get(gpu), config, demand=demand, names=record.aliases, store=store, params=params
            )
            for gpu in types
            for config in dict.fromkeys(config for user in users for config in capped_configs(user, gpus.get(gpu)))
        }
        found.append(replace(job, rates=rates))
    return tuple(found)


def own_options(
    jobs: Sequence[PreparedJob], offers: Sequence[Offer], availability: Mapping[str, float], gpus: GpuCatalog
) -> Iterator[ServingOption]:
    """Yield the options of jobs: each configuration on each offer, at its largest throughput without objectives.

    availability : by offer, the part of the time that a replica runs; default 1.
    """
    for item in jobs:
        shown_zero: set[tuple[str, EngineConfig]] = set()
        for offer in offers:
            for config in capped_configs(item, gpus.get(offer.gpu)):
                rate = item.rates[offer.gpu, config]
                if config.gpus_per_replica > offer.gpus_per_instance or (offer.gpu, config) in shown_zero:
                    continue
                if not rate.units_per_s:
                    shown_zero.add((offer.gpu, config))  # one offer is enough to carry the reason
                yield ServingOption(
                    service=item.job.name,
                    offer=offer,
                    gpus_per_replica=config.gpus_per_replica,
                    throughput_rps=np.array([rate.units_per_s * availability.get(offer.name, 1.0)]),
                    config=config,
                    power_w=rate.power_w,
                    idle_power_w=rate.idle_power_w,
                    busy_power_w=rate.busy_power_w,
                    provenance=() if rate.provenance is None else (rate.provenance,),
                    limiting=(rate.limiting,),
                )


def job_assumptions(
    jobs: Sequence[PreparedJob], services: Sequence[PreparedService], horizon: HorizonChoice | None
) -> Iterator[str]:
    """Yield what a plan with jobs takes for granted."""
    hosts = {item.job.name: [service.request.name for service in services if item.has_host(service)] for item in jobs}
    for item in jobs:
        job = item.job
        start = f"after {format_duration(job.release_s)} and " if job.release_s else ""
        when = (
            f"at a steady rate until {format_duration(job.deadline_s)} from now"
            if horizon is None
            else f"{start}by {format_duration(job.deadline_s)} of every {format_duration(horizon.periods)}"
        )
        yield f"{job.name}: {format_count(job.amount, job.unit)} {when}; {_host_text(job, hosts[job.name])}."
        if item.request.kind == "fine-tune":
            yield (
                f"{job.name}: {item.request.method} on sequences of {item.request.sequence_tokens:,} tokens; replicas "
                "divide the tokens among them, and what they exchange is not counted."
            )
    if any(hosts.values()):
        yield "Work beside requests uses the headroom as well, and waits while requests need it."


def _host_text(job: Job, hosts: Sequence[str]) -> str:
    if not hosts:
        return "on GPUs of its own only"
    names = " and ".join(hosts)
    return f"beside {names} it reaches {job.harvest_efficiency:.4g} of what the same GPU time gives it alone"


def _check_times(item: Deferrable, horizon: HorizonChoice | None, where: str) -> None:
    """Refuse times of the day without a horizon, and times beyond it."""
    if item.deadline.seconds == 0:
        raise InputError(
            f"The deadline of {item.name!r} is the very start.",
            hint='Give a later one; midnight at the end of the day is "24:00".',
            where=at(f"{where}.deadline"),
        )
    if horizon is not None and item.start is not None and item.start.seconds == horizon.periods:
        raise InputError(
            f"{item.name!r} may start at the end of the horizon, which is where it begins again.",
            hint='Leave the start out, or write 0h or "00:00".',
            where=at(f"{where}.start"),
        )
    for name, moment in (("start", item.start), ("deadline", item.deadline)):
        if moment is None:
            continue
        if horizon is None and moment.is_clock:
            raise InputError(
                f"The {name} of {item.name!r} is a time of the day, and without a horizon there is no day.",
                hint="Give a duration from now, 8h, or a horizon: {periods: 24h, step: 1h}.",
                where=at(f"{where}.{name}"),
            )
        if horizon is not None and moment.seconds > horizon.periods:
            raise InputError(
                f"The {name} of {item.name!r} lies beyond the horizon of {format_duration(horizon.periods)}, which "
                "repeats.",
                hint="Make the horizon longer; a deadline that is not after the start is the next round's.",
                where=at(f"{where}.{name}"),
            )
    if horizon is None and item.start is not None and item.start.seconds >= item.deadline.seconds:
        raise InputError(
            f"{item.name!r} is due before it may start.", hint="Both count from now.", where=at(f"{where}.deadline")
        )


def _sizes(item: Deferrable, base_dir: Path) -> tuple[Demand | None, tuple[str, str] | None]:
    """Return the job's requests as a demand of 1 req/s, None without any, and the file that they were read from."""
    workload = item.workload
    if workload is None:
        return None, None
    if workload.constant is not None:
        return constant_demand(item.name, 1.0, workload.constant.input_tokens, workload.constant.output_tokens), None
    name = workload.histogram or ""
    path = base_dir / name
    demand = demand_from_histogram(read_histogram(path), service=item.name, rate_rps=1.0)
    return demand, (name, hashlib.sha256(path.read_bytes()).hexdigest())


def _units_per_request(item: Deferrable, demand: Demand) -> float:
    """Return how many of the job's units a request is: 1, or its tokens."""
    if item.requests is not None:
        return 1.0
    return sum(
        bucket.rate_rps * ((bucket.input_tokens or 0.0) + (bucket.output_tokens or 0.0)) for bucket in demand.buckets
    )


def _job(item: Deferrable, demand: Demand | None, params: EstimatorParams) -> Job:
    efficiency = item.efficiency
    if efficiency is None:
        efficiency = params.value("harvest_efficiency", item.kind)
    output = None if demand is None else (demand.output_tokens_per_s or 0.0) / _units_per_request(item, demand)
    return Job(
        name=item.name,
        amount=item.requests or item.tokens or 0.0,
        unit="tokens" if item.requests is None else "requests",
        release_s=0.0 if item.start is None else item.start.seconds,
        deadline_s=item.deadline.seconds,
        harvest_efficiency=efficiency,
        output_tokens_per_unit=output,
    )


def _rate(
    job: PreparedJob,
    gpu: GpuSpec,
    config: EngineConfig,
    *,
    demand: Demand | None,
    names: Sequence[str],
    store: MeasuredStore,
    params: EstimatorParams,
) -> WorkRate:
    """Return how fast a replica does the job; `names` are other names under which its model was measured."""
    if demand is None:
        return _training_rate(job, gpu, config, params)
    profile = profile_option(
        job.model, gpu, config, demand.buckets, (), store=store, params=params, aliases=tuple(names)
    )
    return _work_rate(profile, demand, _units_per_request(job.request, demand))


def _training_rate(job: PreparedJob, gpu: GpuSpec, config: EngineConfig, params: EstimatorParams) -> WorkRate:
    """Return how fast a replica fine-tunes: its own, or beside the requests of a service."""
    is_own = config.engine == FINE_TUNING
    training = Training(
        method=job.request.method, sequence_tokens=job.request.sequence_tokens, shares_weights=not is_own
    )
    found = training_estimate(job.model, gpu, config.gpus_per_replica, training, params)
    is_capped = config.power_cap_w is not None  # nothing is known of training under a power limit
    draw = gpu_draw(gpu)
    return WorkRate(
        units_per_s=0.0 if is_capped else found.tokens_per_s,
        provenance=found.provenance,
        limiting=found.limiting,
        power_w=peak_power_w(gpu, config),
        idle_power_w=WattsPerReplica(draw.idle_w * config.gpus_per_replica),
        busy_power_w=WattsPerReplica(draw.busy_w * config.gpus_per_replica),
    )


def _work_rate(profile: OptionProfile, demand: Demand, units_per_request: float) -> WorkRate:
    """Return the rate of a mix of sizes, each at its own largest rate: 1 / sum_b (share_b / X_b)."""
    shares = np.array([bucket.rate_rps for bucket in demand.buckets])
    is_done = bool(np.all(profile.throughput_rps > 0))
    worst = min(profile.provenance, key=lambda item: _LEAST_CERTAIN.index(item.kind), default=None)
    decisive = int(np.argmin(profile.throughput_rps / shares))
    return WorkRate(
        units_per_s=units_per_request / float((shares / profile.throughput_rps).sum()) if is_done else 0.0,
        provenance=worst,
        limiting=profile.limiting[decisive],
        power_w=profile.power_w,
        idle_power_w=profile.idle_power_w,
        busy_power_w=profile.busy_power_w,
    )
