"""Rows of `gpuplan profile estimate --points`, as published tables spell them, read into what the estimator asks."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from planner.catalog.gpus import load_gpus
from planner.catalog.models import list_models, load_model
from planner.domain.hardware import EngineConfig
from planner.domain.model import MixerKind
from planner.domain.precision import BYTES_PER_PARAMETER, SPARSE, weight_bytes
from planner.errors import PlannerError
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean
from planner.files.slo import parse_slo
from planner.profilers import roofline
from planner.profilers.adapter_engines import computed_rank, slot_modules
from planner.profilers.adapters import ATTENTION, DEFAULT_RANK, Adapters, adapter_load
from planner.profilers.efficiency import ENGINES, engine_family
from planner.profilers.eras import MLPERF_VERSION, UNSTATED_VERSION, version_key
from planner.profilers.support import unsupported
from planner.profilers.variants import Drafting, Offload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture
    from planner.domain.slo import Slo
    from planner.profilers.efficiency import EstimatorParams

REQUIRED = ("model", "gpu", "input_tokens", "output_tokens", "load_kind")
"""Columns without which a table of points cannot be read; their cells may be empty, but for model and gpu."""

LOAD_KINDS = ("offline_max", "static_batch", "concurrency", "request_rate", "poisson_max_under_slo")

STATUS_OK = "ok"
STATUS_OUT_OF_REACH = "out_of_reach"
"""No rate meets the objectives."""
MAX_SEQUENCES = 2048
"""Sequences at once where a published run does not tell its limit (TensorRT-LLM's default of the build)."""

SEQUENCES_OF = {"peft": 2}
"""The same of engines without batching across adapters: hardly more than one request at a time."""

FIXED_WORDS = ("fixed", "constant", "static")
"""Words in length_dist that say that all requests are alike."""

WORDS_OF_PRECISION = (
    ("int8-2:4", "int8-2:4"),
    ("int4-2:4", "int4-2:4"),
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("fp4", "nvfp4"),
    ("w4a16", "int4"),
    ("w4a8", "int4"),
    ("awq", "int4"),
    ("gptq", "int4"),
    ("int4", "int4"),
    ("q4", "int4"),
    ("w8a8", "int8"),
    ("w8a16", "int8"),
    ("int8", "int8"),
    ("q8", "int8"),
    ("fp8", "fp8"),
    ("float8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("float16", "fp16"),
    ("half", "fp16"),
)
"""Spellings of precisions in published tables, the first that is found counts."""


class CannotEstimate(Exception):  # noqa: N818 - it ends one row, not the program
    """Why a row gets no estimate."""

    def __init__(self, status: str, note: str) -> None:
        """Take the row's `status` and its `note`."""
        super().__init__(note)
        self.status, self.note = status, note


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One operating point that is asked for."""

    model: ModelArchitecture
    gpu: GpuSpec
    config: EngineConfig
    n_replicas: float
    """Replicas side by side in the configuration; the load is spread over them evenly."""
    input_tokens: float
    output_tokens: float
    is_fixed_length: bool
    beams: int = 1
    """Width of beam search: the answers that a request works on at once."""
    load_kind: str
    load: float
    """Of the whole configuration: clients, batch or requests/s; 0 where the load kind has none."""
    slos: tuple[Slo, ...] = ()
    adapters: Adapters | None = None
    offload: Offload | None = None
    drafting: Drafting | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def n_busy(self) -> float:
        """Replicas that have anything to do: clients, or requests of a batch, may be fewer than replicas."""
        is_counted = self.load_kind in {"concurrency", "static_batch"}
        return min(self.n_replicas, self.load) if is_counted else self.n_replicas

    @property
    def n_streams(self) -> float:
        """Busy replicas per sequence of a request: what turns a replica's rate of sequences into requests."""
        return self.n_busy / self.beams

    @property
    def n_gpus(self) -> float:
        """GPUs of the whole configuration."""
        return self.n_replicas * self.config.gpus_per_replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is known of a published benchmark's requests."""

    input_tokens: float
    output_tokens: float
    slos: tuple[Slo, ...]
    beams: int


@cache
def load_benchmarks() -> Mapping[tuple[str, str], Benchmark]:
    """Return the bundled table, (length_dist in lower case, canonical model name or "") -> its requests."""
    text = bundled("profiles", "benchmark_lengths.csv").read_text(encoding="utf-8")
    return {
        (row["length_dist"].lower(), row["model"]): Benchmark(
            input_tokens=float(row["input_tokens"]),
            output_tokens=float(row["output_tokens"]),
            slos=tuple(parse_slo(part) for part in row["slo"].split(";") if part.strip()),
            beams=int(row["beams"]),
        )
        for row in csv.DictReader(text.splitlines())
    }


def benchmark_of(length_dist: str, model: ModelArchitecture) -> Benchmark:
    """Return the requests of a benchmark, or the default where it is not known."""
    table, name = load_benchmarks(), length_dist.strip().lower()
    return table.get((name, model.name)) or table.get((name, "")) or table["", ""]


def read_question(row: Mapping[str, str], params: EstimatorParams, *, is_published: bool = True) -> Question:
    """Return what a row asks.

    `is_published`: a static batch of an engine that tells no version is one of the published tables of 2024. A user's
    own rows, and those read with a user's own parameters, are of today's engine.

    Raises
    ------
    CannotEstimate: with the row's status and note.
    """
    cells = {key: (value or "").strip() for key, value in row.items() if key}
    notes: list[str] = []
    model, gpu = _model(cells, notes), _gpu(cells, notes)
    benchmark = benchmark_of(cells.get("length_dist", ""), model)
    sizes = _sizes(cells, benchmark, notes)
    kind, load = _load(cells, notes)
    engine = _engine(cells, gpu, notes)
    precision = _precision(cells, model, gpu, notes)
    most = SEQUENCES_OF.get(engine_family(engine), MAX_SEQUENCES)
    config = EngineConfig(
        engine=engine,
        engine_version=_version(cells, kind, notes, is_published=is_published and not params.own),
        precision=precision,
        kv_precision=_kv_precision(engine, precision, gpu),
        max_num_seqs=max(most, math.ceil(load) if kind == "static_batch" else 0),
    )
    slos = _slos(cells, benchmark, notes) if kind == "poisson_max_under_slo" else ()
    question = Question(
        model=model,
        gpu=gpu,
        config=config,
        n_replicas=1.0,
        input_tokens=sizes[0],
        output_tokens=sizes[1],
        is_fixed_length=any(word in cells.get("length_dist", "fixed").lower() for word in FIXED_WORDS),
        beams=benchmark.beams,
        load_kind=kind,
        load=load,
        slos=slos,
        adapters=_adapters(cells, model, config, notes),
        offload=_offload(cells, gpu, notes),
        drafting=_drafting(cells, notes),
    )
    question = _spread(question, cells, params, notes)
    if precision in SPARSE:
        notes.append(_sparsity_note(gpu, params))
    if _shares_caches(question, cells):
        question = replace(question, config=replace(question.config, is_attention_data_parallel=True))
        notes.append("data-parallel attention assumed: each GPU keeps the latent caches of its own requests")
    reason = unsupported(gpu, question.config)
    if reason:
        notes.append(f"{reason}, as far as is known; estimated all the same")
    notes.extend(_uneven_ranks(model, question.config.tensor_parallel))
    return replace(question, notes=tuple(notes))


def _uneven_ranks(model: ModelArchitecture, tp: int) -> list[str]:
    heads = sorted({group.n_query_heads for group in model.layers if group.kv_elements_per_token})
    if all(n % tp == 0 for n in heads):
        return []
    return [f"tp {tp} does not divide the {' and '.join(map(str, heads))} heads: most engines refuse that"]


def _model(cells: Mapping[str, str], notes: list[str]) -> ModelArchitecture:
    """Return the model that a row names; an unknown checkpoint of a known model is read as that model."""
    name = cells.get("model", "")
    if not name:
        raise CannotEstimate("unknown_model", "no model is named")
    try:
        return load_model(name)
    except PlannerError as error:
        unknown = error
    shorter = name.replace("_", "-").replace(" ", "-").rpartition("/")[2]
    while (trimmed := CHECKPOINT_WORD.sub("", shorter)) != shorter:
        shorter = trimmed
        try:
            found = load_model(shorter)
        except PlannerError:
            continue
        notes.append(f"{name} read as {found.name}")
        return found
    nearest = _containing(name)
    if nearest is None:
        raise CannotEstimate("unknown_model", str(unknown)) from unknown
    notes.append(f"{name} read as {nearest}")
    return load_model(nearest)


@cache
def _containing(name: str) -> str | None:
    """Return the library model with the shortest name that contains `name`, letters and digits alone; None if none."""
    if not any(map(str.isdigit, name)):
        return None  # a family or a kind of tuning, not a model
    wanted = "".join(filter(str.isalnum, name.rpartition("/")[2])).lower()
    names = {model.name: "".join(filter(str.isalnum, model.name)).lower() for model in list_models()}
    found = [full for full, plain in names.items() if len(wanted) >= LEAST_LETTERS and wanted in plain]
    return min(found, key=lambda full: (len(full), full), default=None)


LEAST_LETTERS = 5
"""Shorter names could be part of too many others."""


CHECKPOINT_WORD = re.compile(
    r"^(?:meta-)|-(?:instruct|chat|hf|it|base|preview|thinking|fp8|fp4|nvfp4|mxfp4|bf16|fp16|awq|gptq|int4|int8|w4a16|w8a8"
    r"|kv|dynamic|static|block|\d{4}|v\d(?:\.\d)?)$",
    re.IGNORECASE,
)
"""What published names add to a model's: its tuning, number format or date."""


def _gpu(cells: Mapping[str, str], notes: list[str]) -> GpuSpec:
    name, catalog = cells.get("gpu", ""), load_gpus()
    found = catalog.find(name)
    if found is None:
        near = did_you_mean(name, catalog.by_name)
        unknown = f"the GPU {name!r} is not known" + (f" ({near[:1].lower()}{near[1:]})" if near else "")
        raise CannotEstimate("unknown_gpu", unknown if name else "no GPU is named")
    if found.note:
        notes.append(found.note)
    return catalog.by_name[found.gpu]


def _number(cells: Mapping[str, str], column: str) -> float | None:
    text = cells.get(column, "")
    if not text or text.lower() in {"nan", "none", "null"}:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= LARGEST_NUMBER:
        what = "is not a number" if math.isnan(number) else f"is beyond {LARGEST_NUMBER:,.0f}"
        raise CannotEstimate("bad_value", f"{column} {text!r} {what}")
    return number


LARGEST_NUMBER = 1e6
"""No load, length or count is larger; what is, was meant for another column."""


def _sizes(cells: Mapping[str, str], benchmark: Benchmark, notes: list[str]) -> tuple[float, float]:
    prompt, output = _number(cells, "input_tokens"), _number(cells, "output_tokens")
    if prompt is None or output is None:
        known = cells.get("length_dist") or "no data set named"
        missing = " and ".join(
            f"{name} {size:g}"
            for name, given, size in (
                ("input", prompt, benchmark.input_tokens),
                ("output", output, benchmark.output_tokens),
            )
            if given is None
        )
        notes.append(f"lengths assumed: {missing} tokens ({known})")
    found = (
        benchmark.input_tokens if prompt is None else prompt,
        benchmark.output_tokens if output is None else output,
    )
    if min(found) < 0:
        raise CannotEstimate("bad_value", f"lengths of {found[0]:g} and {found[1]:g} tokens, which must not be below 0")
    share = _mean_share(cells.get("length_dist", ""), notes)
    return max(1.0, found[0] * share), max(1.0, found[1] * share)


def _mean_share(length_dist: str, notes: list[str]) -> float:
    """Return the mean length over the nominal one: lengths that are uniform in a range lie in its middle."""
    if "uniform" not in length_dist.lower():
        return 1.0
    ends = [float(text) for text in re.findall(r"\d*\.?\d+", length_dist)]
    shares = [end for end in ends if 0 < end <= LARGEST_SHARE]
    low, high = (min(shares), max(shares)) if len(shares) > 1 else UNIFORM_SHARES
    notes.append(f"lengths uniform in {low:g} to {high:g} of the nominal ones")
    return (low + high) / 2


LARGEST_SHARE = 2.0
"""Numbers in length_dist up to this are shares of the nominal length."""
UNIFORM_SHARES = (0.8, 1.0)
"""Of the nominal length, where uniform lengths have no range: that of the InferenceX benchmark."""


def _load(cells: Mapping[str, str], notes: list[str]) -> tuple[str, float]:
    """Return the load's kind and its size; an empty kind is read from the size."""
    kind, text = cells.get("load_kind", ""), cells.get("concurrency_or_rate", "").lower()
    amount = None if text in {"", "inf", "max", "infinity", "nan"} else _number(cells, "concurrency_or_rate")
    if not kind:
        kind = "offline_max" if amount is None else "concurrency"
        notes.append(f"load_kind not told: {kind} assumed")
    if kind not in LOAD_KINDS:
        raise CannotEstimate("bad_value", f"load_kind {kind!r} is not known (known: {', '.join(LOAD_KINDS)})")
    if kind in {"offline_max", "poisson_max_under_slo"}:
        return kind, 0.0
    if amount is None and kind == "request_rate":
        notes.append("all requests at once (rate inf): the largest throughput")
        return "offline_max", 0.0
    if amount is None:
        amount = 1.0
        notes.append(f"{kind} of 1 assumed: its size is not told")
    if amount <= 0 or (amount < 1 and kind != "request_rate"):
        least = "above 0" if kind == "request_rate" else "at least 1"
        raise CannotEstimate("bad_value", f"concurrency_or_rate {amount:g}: of a {kind} it must be {least}")
    return kind, amount


def _engine(cells: Mapping[str, str], gpu: GpuSpec, notes: list[str]) -> str:
    engine = cells.get("engine", "")
    if not engine:
        engine = "tensorrt-llm" if _is_mlperf(cells) and gpu.vendor == "NVIDIA" else "vllm"
        notes.append(f"engine not told: {engine} assumed")
    elif engine_family(engine) not in ENGINES:
        near = did_you_mean(engine, ENGINES)
        meant = f" ({near[:1].lower()}{near[1:]})" if near else ""
        notes.append(f"nothing was fitted for {engine}{meant}: default overheads")
    return engine


def _is_mlperf(cells: Mapping[str, str]) -> bool:
    return "mlperf" in cells.get("length_dist", "").lower()


PACKED_VERSION = "0.2"
"""Of vLLM in comparisons with S-LoRA: before it shared a backbone between adapters."""


def _version(cells: Mapping[str, str], kind: str, notes: list[str], *, is_published: bool) -> str:
    version = cells.get("engine_version", "")
    if _is_mlperf(cells):
        return MLPERF_VERSION
    if not version and _number(cells, "num_adapters") and engine_family(cells.get("engine", "")) == "vllm":
        notes.append("engine version not told: as in published comparisons of adapters (2023)")
        return PACKED_VERSION
    if not version and kind == "static_batch" and is_published:
        notes.append("engine version not told: as in published static-batch tables (2024)")
        return UNSTATED_VERSION
    return version


def _precision(cells: Mapping[str, str], model: ModelArchitecture, gpu: GpuSpec, notes: list[str]) -> str:
    text = cells.get("precision", "").lower()
    if text in {"", "nan", "none", "auto"}:
        text = ""
        named = next((name for word, name in WORDS_OF_PRECISION if f"-{word}" in cells["model"].lower()), "")
        if named:
            notes.append(f"precision {named} as the model's name says")
            return named
    found = next((name for word, name in WORDS_OF_PRECISION if word in text), "")
    if text and not found:
        raise CannotEstimate(
            "bad_value", f"precision {cells['precision']!r} is not known (known: {', '.join(BYTES_PER_PARAMETER)})"
        )
    if found == "nvfp4" and "nvfp4" not in text:
        is_mxfp4 = model.native_precision == "mxfp4" or gpu.vendor != "NVIDIA"
        found = "mxfp4" if is_mxfp4 else "nvfp4"
    if not found:
        tuned = "nvfp4" if "fp4" in gpu.peak_flops and gpu.vendor == "NVIDIA" else "fp8"
        found = tuned if _is_mlperf(cells) and tuned.removeprefix("nv") in gpu.peak_flops else model.native_precision
        found = found if found in BYTES_PER_PARAMETER and found != "fp32" else "bf16"
        notes.append(f"precision not told: {found} assumed")
    return found


def _sparsity_note(gpu: GpuSpec, params: EstimatorParams) -> str:
    factor = params.value("sparse_factor", gpu.name, gpu.architecture, gpu.vendor)
    gain = f"products {factor:g} times as fast" if factor > 1.0 else f"{gpu.name} saves bytes and no arithmetic by it"
    return f"two of every four weights are 0: {gain}; what that does to the answers must be measured"


def _kv_precision(engine: str, precision: str, gpu: GpuSpec) -> str:
    is_short = precision in {"fp8", "nvfp4"} and engine_family(engine) == "tensorrt-llm"
    return "fp8" if is_short and "fp8" in gpu.peak_flops else "bf16"


def _slos(cells: Mapping[str, str], benchmark: Benchmark, notes: list[str]) -> tuple[Slo, ...]:
    text = cells.get("slo", "")
    if text:
        try:
            found = tuple(parse_slo(part) for part in text.split(";") if part.strip())
        except PlannerError as error:
            raise CannotEstimate("bad_value", f"slo: {error}") from error
        if not found:
            raise CannotEstimate("bad_value", f"slo {text!r} has no objective")
        return found
    found = benchmark.slos or load_benchmarks()["mlperf dataset", ""].slos
    notes.append(f"objectives assumed: {', '.join(map(str, found))}")
    return found


def _spread(question: Question, cells: Mapping[str, str], params: EstimatorParams, notes: list[str]) -> Question:
    """Return the question with its parallelism: as told, else the fewest GPUs per replica that hold the model."""
    tp, pp, n_gpus, ep = (_number(cells, name) for name in ("tp", "pp", "gpu_count", "ep"))
    if any(number is not None and (number < 1 or number % 1) for number in (tp, pp, n_gpus, ep)):
        raise CannotEstimate(
            "bad_value", f"tp {tp}, pp {pp}, ep {ep}, gpu_count {n_gpus} must be whole numbers from 1 on"
        )
    if tp is None:
        total = max(1, int(n_gpus or 1))
        tp = float(_smallest_fit(question, total // int(pp or 1), params))
        if total > 1:
            notes.append(f"tp not told: {tp:g} assumed")
    shape = (int(tp), int(pp or 1))
    if shape[0] * shape[1] > MOST_GPUS:
        raise CannotEstimate("bad_value", f"a replica of {shape[0] * shape[1]:,} GPUs")
    config = replace(question.config, tensor_parallel=shape[0], pipeline_parallel=shape[1])
    n_replicas = max(1.0, (n_gpus or 1.0) // config.gpus_per_replica)
    if n_gpus is not None and n_gpus % config.gpus_per_replica:
        notes.append(
            f"gpu_count {n_gpus:g} is no multiple of tp {shape[0]} x pp {shape[1]}: {n_replicas:g} such replica(s)"
        )
    found = replace(question, config=config, n_replicas=n_replicas)
    reason = misfit_of(found, params)
    if reason:
        raise CannotEstimate("does_not_fit", reason)
    n_tokens = found.input_tokens + found.output_tokens
    if n_tokens > found.model.max_context_tokens:
        notes.append(f"{n_tokens:,.0f} tokens are more than the model's context of {found.model.max_context_tokens:,}")
    return found


MOST_GPUS = 1024
"""Of one replica."""


def _adapters(
    cells: Mapping[str, str], model: ModelArchitecture, config: EngineConfig, notes: list[str]
) -> Adapters | None:
    """Return the adapters that a row asks for; None without any."""
    count = _number(cells, "num_adapters")
    if not count:
        return None
    if count < 0:
        raise CannotEstimate("bad_value", f"num_adapters {count:g}")
    ranks, alpha = _ranks_of(cells.get("adapter_rank", "")), _number(cells, "zipf_alpha")
    version = version_key(config.engine_version)
    is_packed = "packed" in config.engine.lower() or (
        engine_family(config.engine) == "vllm" and (0,) < version < (0, 3)
    )
    if not ranks:
        notes.append(f"adapter_rank not told: {DEFAULT_RANK:g} assumed")
    rank, modules = DEFAULT_RANK, ATTENTION
    if not is_packed:
        try:
            rank = computed_rank(config.engine, ranks or (DEFAULT_RANK,))
            modules = slot_modules(config.engine, model, ATTENTION)
        except PlannerError as error:
            raise CannotEstimate("bad_value", f"num_adapters: {error.message}") from error
    kind = "a merged copy of the model for each" if is_packed else "one backbone for all"
    notes.append(f"{count:g} adapters, {kind}")
    return Adapters(
        count=max(1.0, count),
        rank=rank,
        zipf_alpha=1.0 if alpha is None else max(0.0, alpha),
        is_shared=not is_packed,
        modules=modules,
    )


def _offload(cells: Mapping[str, str], gpu: GpuSpec, notes: list[str]) -> Offload | None:
    fraction, rate = _number(cells, "offload_fraction"), _number(cells, "offload_gb_s")
    if not fraction:
        return None
    if not 0 < fraction <= 1 or (rate is not None and rate <= 0):
        raise CannotEstimate("bad_value", f"offload_fraction {fraction:g}, offload_gb_s {rate}")
    if rate is None:
        rate = gpu.pcie_bytes_per_s * PCIE_FRACTION / 1e9
        notes.append(f"offload over PCIe at {rate:.3g} GB/s assumed")
    return Offload(fraction=fraction, bytes_per_s=rate * 1e9)


PCIE_FRACTION = 0.8
"""Of the data-sheet rate, in large copies: 25 of 31.5 GB/s over PCIe 4 (DeepSpeed Inference, SC 2022)."""


def _drafting(cells: Mapping[str, str], notes: list[str]) -> Drafting | None:
    tokens, acceptance = _number(cells, "draft_tokens"), _number(cells, "draft_acceptance")
    if not tokens:
        return None
    if acceptance is None or not 0 <= acceptance <= 1 or tokens < 0:
        raise CannotEstimate("bad_value", "draft_tokens need a draft_acceptance between 0 and 1")
    notes.append(f"{tokens:g} drafted tokens per step; the draft's own cost is left out")
    return Drafting(n_tokens=round(tokens), acceptance=acceptance)


def _ranks_of(text: str) -> tuple[float, ...]:
    """Return the ranks in a text such as "64/32/16/8"; () where it tells none, as a name."""
    parts = [part.strip() for part in text.split("/")]
    if not all(part.replace(".", "", 1).isdigit() for part in parts):
        return ()
    return tuple(float(part) for part in parts)


def _shares_caches(question: Question, cells: Mapping[str, str]) -> bool:
    """Return whether a latent cache, which tensor parallelism would copy to every rank, is shared out instead.

    That is how engines serve such models where the batch is large: expert parallelism, or many requests per GPU.
    """
    config = question.config
    if config.tensor_parallel == 1 or all(
        group.mixer is not MixerKind.LATENT_ATTENTION for group in question.model.layers
    ):
        return False
    is_full = question.load_kind in {"offline_max", "poisson_max_under_slo"}
    return is_full or (_number(cells, "ep") or 1.0) > 1.0 or question.load / question.n_gpus >= MANY_PER_GPU


MANY_PER_GPU = 32.0
"""Requests under way per GPU from which on attention is run data-parallel."""


def _smallest_fit(question: Question, most: int, params: EstimatorParams) -> int:
    """Return the fewest ranks (a power of two) whose KV caches hold a sensible batch, at most `most`."""
    tp = 1
    while tp < most:
        config = replace(question.config, tensor_parallel=tp)
        memory = roofline.replica_memory(question.model, question.gpu, config, params)
        if memory.kv_bytes > LEAST_CACHE_FRACTION * memory.usable_bytes:
            return tp
        tp *= 2
    return tp if tp <= max(1, most) else max(1, most)


LEAST_CACHE_FRACTION = 0.12
"""Of the usable memory: a replica with less room for its cache is spread over more GPUs."""


def misfit_of(question: Question, params: EstimatorParams) -> str:
    """Return why the model does not run on this configuration, in words; "" if it does."""
    config = question.config
    if roofline.math_format(config.precision, question.gpu) is None:
        return f"{question.gpu.name} has no tensor arithmetic for {config.precision} weights"
    if config.pipeline_parallel > question.model.n_layers:
        return f"{config.pipeline_parallel} pipeline stages for {question.model.n_layers} layers"
    memory = roofline.replica_memory(question.model, question.gpu, config, params)
    resident = memory.kv_bytes
    if question.offload is not None:
        resident += question.offload.fraction * weight_bytes(question.model, config.precision) / config.gpus_per_replica
    copies = question.adapters if question.adapters and not question.adapters.is_shared else None
    if resident > 0 and copies is not None:
        taken = adapter_load(question.model, config, copies, copies.count).memory_bytes
        if taken >= memory.kv_bytes:
            where = f"{config.gpus_per_replica} x {question.gpu.name}"
            return f"{copies.count:g} merged copies of the weights do not fit {where}"
    if resident <= 0:
        total = weight_bytes(question.model, config.precision)
        return (
            f"weights of {total / 1e9:.0f} GB in {config.precision} do not fit "
            f"{config.gpus_per_replica} x {question.gpu.name}"
        )
    kept = np.array([(question.input_tokens + question.output_tokens) / question.beams])
    one = float(roofline.kv_bytes_per_gpu(question.model, config, kept, is_read=False)[0])
    if one > resident:
        return f"the KV cache of one request of {kept[0]:,.0f} tokens does not fit beside the weights"
    return ""
