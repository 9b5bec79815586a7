"""The services of a request, with everything read that they name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.catalog.models import load_record
from planner.domain.hardware import EngineConfig
from planner.errors import InputError
from planner.planning.adapters import prepare_adapters, read_service_adapters, with_sum_of_rates
from planner.planning.horizon import Rhythm, own_rhythm, stated_rhythm
from planner.planning.located import inside
from planner.planning.traffic import TrafficSource, read_demand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from planner.domain.model import ModelArchitecture
    from planner.domain.workload import Demand
    from planner.files.request.deferrable import Deferrable
    from planner.files.request.horizon import HorizonChoice
    from planner.files.request.services import Service
    from planner.planning.adapters import ServiceAdapters


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
    adapters: ServiceAdapters | None = None
    """Where requests are for adapters; `demand` has a bucket for each group of them then."""


def prepare_service(service: Service, index: int, *, base_dir: Path, horizon: HorizonChoice | None) -> PreparedService:
    """Return `service`, number `index` of the request, with everything read that it names."""
    with inside(f"services[{index}].model"):
        record = load_record(service.model, base_dir=base_dir)
    adapters, traces = read_service_adapters(service, index, base_dir=base_dir)
    if adapters:
        service = with_sum_of_rates(service, index, adapters)
    with inside(f"services[{index}].workload"):
        rhythm = None if horizon is None else stated_rhythm(service, horizon, base_dir=base_dir)
        if rhythm is not None and rhythm.rate_rps is not None:
            service = service.model_copy(
                update={"workload": service.workload.model_copy(update={"rate": rhythm.rate_rps})}
            )
        demand, traffic = read_demand(service, base_dir=base_dir)
        if horizon is not None and rhythm is None:
            rhythm = own_rhythm(traffic.trace, horizon)
    with inside(f"services[{index}].parallelism"):
        configs = tuple(engine_configs(service, record.architecture))
    aliases = tuple(record.aliases)
    prepared = None
    if adapters:
        with inside(f"services[{index}].adapters"):
            prepared = replace(prepare_adapters(service, record.architecture, adapters, demand), traces=traces)
        demand = prepared.demand
    return PreparedService(
        request=service,
        model=record.architecture,
        model_aliases=aliases,
        demand=demand,
        traffic=traffic,
        configs=configs,
        rhythm=rhythm,
        adapters=prepared,
    )


def engine_configs(service: Service | Deferrable, model: ModelArchitecture) -> Iterator[EngineConfig]:
    """Yield the engine configurations that compete for `service`, or for a job's own replicas.

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
