"""A model with adapters on one kind of GPU, as a replay of functions needs it: sizes, batch times, load times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.adapters import Isolation, adapter_bytes
from planner.domain.hardware import EngineConfig
from planner.domain.precision import BYTES_PER_PARAMETER, kv_cache_bytes, state_bytes, weight_bytes
from planner.domain.slo import Metric
from planner.errors import InputError
from planner.optimize.preload import Tier
from planner.planning.estimate import estimate_questions
from planner.planning.estimate_points import Question
from planner.planning.function_objectives import Objectives, objectives_of, steering_bounds_s
from planner.profilers.adapter_batching import BatchLatency
from planner.profilers.adapter_engines import computed_rank, slot_shape
from planner.profilers.adapter_hosts import HOST_BYTES_PER_GPU
from planner.profilers.adapters import Adapters
from planner.profilers.roofline import misfit, replica_memory
from planner.profilers.serverless_figures import figures
from planner.profilers.startup import GIGA, Quantiles, start_up
from planner.simulate.functions.setting import Functions, Setting, StartTimes
from planner.workload.popularity import Popularity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.adapters import Adapter
    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.efficiency import EstimatorParams

ENGINE = EngineConfig(engine="vllm", engine_version="current")
MOST_BATCH = 8
"""Requests that one function's process has KV cache for."""
POOL_BATCH = 32
"""Batch at which the times of a pool's batches are read, beside that of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCase:
    """What `planning.functions.compare_ways` compares on."""

    functions: Functions
    """Rates are those that are stated; what is learnt from a recording takes their place."""
    setting: Setting
    """Of a process that serves one function."""
    pool_setting: Setting
    """Of an engine that serves all: its batches read many adapters."""
    request_kv_bytes: float
    """KV cache of one request when it is done."""
    most_batch: int
    output_tokens: float
    target_fraction: float
    """Part of the requests that has to meet its bounds."""
    assumptions: tuple[str, ...]
    isolation: Isolation = Isolation.SHARED_PROCESS
    """The most that adapters may share: what the strictest of them asks for."""
    isolated_by: str = ""
    """The first adapter that asks for it."""
    stated: Objectives | None = None
    """What requests are judged by; None = by the bounds of `functions`, `target_fraction` of them."""

    @property
    def objectives(self) -> Objectives:
        """What requests are judged by."""
        if self.stated is not None:
            return self.stated
        bounds = {Metric.TTFT: self.functions.ttft_bound_s, Metric.TPOT: self.functions.tpot_bound_s}
        return Objectives(bounds_s=bounds, target_fraction=self.target_fraction, mean_bounds_s={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Tokens of the mean request."""

    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What machines have beside their GPU, and how a process starts on them."""

    storage_bytes_per_s: float
    loader: str = "safetensors"
    host_bytes: float = HOST_BYTES_PER_GPU
    provision_s: float = 0.0
    """Until a machine that was given back is there again, with its image: the median."""
    provision_p99_s: float | None = None
    """The longest of a hundred such waits; None = all are alike."""
    captures_graphs: bool = False
    """Each process compiles and captures CUDA graphs, as vLLM does by default; else kernels come from a cache."""


def function_case(
    model: ModelArchitecture,
    gpu: GpuSpec,
    adapters: Sequence[Adapter],
    *,
    sizes: Sizes,
    slos: Sequence[Slo],
    hosting: Hosting,
    params: EstimatorParams,
    precision: str = "",
    most_batch: int = MOST_BATCH,
) -> FunctionCase:
    """Return the sizes and times of `adapters` on one GPU each.

    A merged adapter weighs nothing beside its weights, which are its own. Batch times are the estimator's for vLLM of
    today; load times are measured or published ones
    (profiles/startup.csv, profiles/lora/serverless.csv).

    Raises
    ------
    InputError: if the model does not fit the GPU, or an adapter has no objective.
    """
    native = model.native_precision if model.native_precision in BYTES_PER_PARAMETER else "bf16"
    config = replace(ENGINE, precision=precision or native)
    if reason := misfit(model, gpu, config, params):
        raise InputError(f"{model.name} cannot be served on one {gpu.name}: {reason}.", hint="Name another GPU.")
    memory = replica_memory(model, gpu, config, params)
    published = figures("re-implementation")
    request_bytes = kv_cache_bytes(model, sizes.input_tokens + sizes.output_tokens) + state_bytes(model)
    own = [adapter_bytes(model, adapter) for adapter in adapters]
    alone = batch_times(model, gpu, config, sizes, params, adapters=None, batch=most_batch)
    rates = [adapter.rate_rps or 0.0 for adapter in adapters]
    rank = computed_rank(config.engine, [adapter.rank for adapter in adapters], rates)
    slot = slot_shape(model, adapters, engine=config.engine)
    many = Adapters(
        count=len(adapters),
        rank=rank,
        zipf_alpha=_pool_popularity(adapters),
        is_shared=True,
        modules=slot.modules,
    )
    together = batch_times(model, gpu, config, sizes, params, adapters=many, batch=POOL_BATCH)
    start = _start_times(model, gpu, config, hosting, adapter_size=max(own))
    setting = Setting(
        gpu_bytes=memory.usable_bytes - memory.activation_bytes,
        host_bytes=hosting.host_bytes,
        backbone_bytes=memory.weight_bytes,
        context_bytes=published["context_gb"] * GIGA,
        kv_bytes=most_batch * request_bytes,
        container_bytes=(published["container_gb"] + published["libraries_gb"]) * GIGA,
        prefill=alone[0],
        decode=alone[1],
        decode_steps=sizes.output_tokens - 1 if alone[1] is not None else None,
        start=start,
    )
    objectives = objectives_of(adapters, slos)
    later_s = 0.0 if alone[1] is None else alone[1].first_s
    ttft_s, tpot_s = steering_bounds_s(objectives, first_s=alone[0].first_s, later_s=later_s)
    strictest = max(adapters, key=lambda adapter: adapter.isolation.strictness)
    return FunctionCase(
        functions=Functions(
            adapter_bytes=np.array(own),
            rate_rps=np.array(rates),
            ttft_bound_s=ttft_s,
            tpot_bound_s=tpot_s,
        ),
        setting=setting,
        pool_setting=replace(setting, prefill=together[0], decode=together[1], slot_bytes=slot.bytes_each),
        request_kv_bytes=request_bytes,
        most_batch=most_batch,
        output_tokens=sizes.output_tokens,
        target_fraction=objectives.target_fraction,
        stated=objectives,
        assumptions=_assumptions(hosting),
        isolation=strictest.isolation,
        isolated_by=strictest.name,
    )


def _pool_popularity(adapters: Sequence[Adapter]) -> float:
    """Return the exponent of Zipf's law that is likeliest for the stated rates; 0 where they are all alike."""
    rates = [adapter.rate_rps for adapter in adapters if adapter.rate_rps]
    return Popularity.fitted(rates, is_shifted=False).exponent if len(rates) > 1 else 0.0


def batch_times(
    model: ModelArchitecture,
    gpu: GpuSpec,
    config: EngineConfig,
    sizes: Sizes,
    params: EstimatorParams,
    *,
    adapters: Adapters | None,
    batch: int,
) -> tuple[BatchLatency, BatchLatency | None]:
    """Return T(b) and D(b) of the mean request: lines through the estimates of static batches of 1 and of `batch`.

    Raises
    ------
    InputError: if there is no estimate.
    """
    questions = [
        Question(
            model=model,
            gpu=gpu,
            config=config,
            n_replicas=1.0,
            input_tokens=sizes.input_tokens,
            output_tokens=sizes.output_tokens,
            is_fixed_length=True,
            load_kind="static_batch",
            load=float(size),
            adapters=adapters,
        )
        for size in (1, max(2, batch))
    ]
    answers = estimate_questions(questions, params)
    found = [answer.estimate for answer in answers if answer.estimate is not None]
    if len(found) < len(answers):
        reason = next(answer.note for answer in answers if answer.estimate is None)
        raise InputError(
            f"Batches of {model.name} on {gpu.name} cannot be estimated: {reason}.", hint="Name another GPU."
        )
    firsts = [float(estimate.ttft_s["mean"] or 0.0) for estimate in found]
    steps = [float(estimate.tpot_s["mean"] or 0.0) for estimate in found]
    later = [step * (sizes.output_tokens - 1) for step in steps]
    span = max(2, batch) - 1
    prefill = BatchLatency(first_s=firsts[0], per_request_s=max(0.0, (firsts[1] - firsts[0]) / span))
    if later[0] <= 0:
        return prefill, None
    return prefill, BatchLatency(first_s=later[0], per_request_s=max(0.0, (later[1] - later[0]) / span))


def _start_times(
    model: ModelArchitecture, gpu: GpuSpec, config: EngineConfig, hosting: Hosting, *, adapter_size: float
) -> StartTimes:
    measured = start_up(
        model,
        gpu,
        precision=config.precision,
        n_gpus=1,
        storage_bytes_per_s=hosting.storage_bytes_per_s,
        loader=hosting.loader,
    )
    timeline, estimates = figures("timeline"), figures("re-implementation")
    to_gpu_s = adapter_size / gpu.pcie_bytes_per_s
    kernels_s = estimates["kernels_s"]
    from_host_s = weight_bytes(model, config.precision) / gpu.pcie_bytes_per_s
    return StartTimes(
        provision_s=Quantiles(
            hosting.provision_s, hosting.provision_s if hosting.provision_p99_s is None else hosting.provision_p99_s
        ),
        container_s=measured.container_s,
        libraries_s=measured.libraries_s,
        backbone_s={Tier.DISK: measured.weights_s, Tier.HOST: Quantiles(from_host_s, from_host_s)},
        backbone_shared_s=Quantiles(estimates["backbone_shared_s"], estimates["backbone_shared_s"]),
        adapter_s={
            Tier.DISK: Quantiles(timeline["adapter_s"], timeline["adapter_s"]),
            Tier.HOST: Quantiles(to_gpu_s, to_gpu_s),
        },
        kernels_s=measured.compile_s if hosting.captures_graphs else Quantiles(kernels_s, kernels_s),
    )


def _assumptions(hosting: Hosting) -> tuple[str, ...]:
    graphs = "CUDA graphs are captured at each start" if hosting.captures_graphs else "no CUDA graphs are captured"
    return (
        "containers, libraries and their tails: profiles/startup.csv; adapters, mapping, kernels and contexts are"
        " published figures and estimates, not measured here (profiles/lora/serverless.csv)",
        f"{graphs}; weights come from storage at {hosting.storage_bytes_per_s / GIGA:g} GB/s with {hosting.loader};"
        f" a GPU has {hosting.host_bytes / GIGA:g} GB of host memory for containers",
        "a machine that was given back is there again at once"
        if hosting.provision_s == 0
        else f"a machine that was given back is there again after {hosting.provision_s:g} s",
        "batches on one GPU take turns; all requests have the mean size",
    )
