"""Many adapters on one A10G: what is estimated of S-LoRA, and replayed of engines that share nothing, against the runs.

S-LoRA's runs are estimated with the fit's own parameters, and with those of fits that had no run of the same figure of
the paper, of the same ranks, or with many adapters. Runs that are no steady state are replayed: S-LoRA's of 60 s as a
pool, and engines that share nothing as a process for each adapter on a GPU that holds one of them at a time.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from _accuracy_fit import DATA, ENGINE_RECIPES, LEAST_RUN_S, lora_cells, lora_rows

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.adapters import Isolation
from planner.domain.hardware import EngineConfig
from planner.domain.precision import UNQUANTIZED_BYTES
from planner.optimize.preload import Tier
from planner.planning import calibration
from planner.planning.estimate import estimate_rows
from planner.planning.function_case import Sizes, batch_times
from planner.profilers.adapter_batching import BatchLatency
from planner.profilers.adapter_packing import AdapterMemory, most_adapters
from planner.profilers.adapters import ATTENTION, DEFAULT_RANK, Adapters
from planner.profilers.roofline import kv_bytes_per_gpu, replica_memory
from planner.profilers.startup import Quantiles
from planner.simulate.functions.pool import PoolSize, replay_pool
from planner.simulate.functions.replay import replay_functions
from planner.simulate.functions.setting import NOTHING, Functions, Policy, Setting, StartTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.profilers.efficiency import EstimatorParams

    Cells = dict[str, str]

ENGINE = "s-lora"
MANY = 10
"""Adapters, from which on a run is left out as one with many."""
MODEL, GPU = "Llama-1-7B", "A10G"
CONFIG = EngineConfig(engine=ENGINE, engine_version="", precision="fp16")
SHORTEST = 8
"""Tokens of the shortest prompts and answers of the runs; lengths are even from here to the longest."""
SEEDS = range(5)

LEFT_OUT: dict[str, Callable[[Cells], str | None]] = {
    "its figure": lambda row: row["figure"],
    "its ranks": lambda row: row["adapter_rank"],
    f"all runs of {MANY} and more": lambda row: "many" if int(row["num_adapters"]) >= MANY else None,
}
"""Runs with one key are left out of the fit that estimates them; those whose key is None are not estimated."""


# --- S-LoRA: one backbone ---------------------------------------------------------------------------------------------


def s_lora_cells() -> list[Cells]:
    """Return the runs of S-LoRA as published, as rows of points."""
    return [row for row in lora_cells() if row["engine"] == ENGINE]


def ratios(cells: list[Cells], params: EstimatorParams) -> np.ndarray:
    """Return estimated / measured requests per second, shape (runs,)."""
    answers = estimate_rows(cells, params)
    rates = [np.nan if answer.estimate is None else answer.estimate.rate_rps for answer in answers]
    return np.array(rates) / np.array([float(row["throughput_req_s"]) for row in cells])


def fitted_on(is_kept: Callable[[Cells], bool], params: EstimatorParams) -> EstimatorParams:
    """Return the parameters with those of S-LoRA fitted anew, from nothing, on the runs that are kept."""
    kept = [row.measurement for row in lora_rows(params) if row.cells["engine"] == ENGINE and is_kept(row.cells)]
    return calibration.fit(kept, [(name, ENGINE) for name in ENGINE_RECIPES[ENGINE]], without_s_lora(params)).params


def without_s_lora(params: EstimatorParams) -> EstimatorParams:
    """Return the parameters as they are where S-LoRA was never measured."""
    return replace(params, table={key: value for key, value in params.table.items() if key[1] != ENGINE})


def left_out(name: str, params: EstimatorParams) -> np.ndarray:
    """Return estimated / measured of S-LoRA's runs by fits without all that share their key; NaN = not estimated."""
    cells, key = s_lora_cells(), LEFT_OUT[name]
    found = np.full(len(cells), np.nan)
    for value in sorted({key(row) for row in cells} - {None}):
        fitted = fitted_on(lambda row, value=value: key(row) != value, params)
        mine = [index for index, row in enumerate(cells) if key(row) == value]
        found[mine] = ratios([cells[index] for index in mine], fitted)
    return found


def by_adapters(values: np.ndarray) -> dict[int, np.ndarray]:
    """Return the known errors |estimated / measured - 1| of S-LoRA's runs by their number of adapters."""
    counts = np.array([int(row["num_adapters"]) for row in s_lora_cells()])
    errors = np.abs(values - 1.0)
    known = np.isfinite(errors)
    return {count: errors[known & (counts == count)] for count in sorted(set(counts[known].tolist()))}


def median_over_adapters(values: np.ndarray) -> float:
    """Return the median over the numbers of adapters of the median error at each."""
    return float(np.median([np.median(errors) for errors in by_adapters(values).values()]))


def falls(params: EstimatorParams, *, fewest: int = MANY) -> dict[str, tuple[float, float]]:
    """Return by how much throughput falls from the first run with `fewest` adapters or more to that with most.

    Measured and estimated, in parts of the former, for each figure and set of ranks over the number of adapters.
    """
    found = {}
    cells = [row for row in s_lora_cells() if int(row["num_adapters"]) >= fewest and row["cv"] == "1"]
    for figure, ranks in sorted({(row["figure"], row["adapter_rank"]) for row in cells}):
        series = [row for row in cells if (row["figure"], row["adapter_rank"]) == (figure, ranks)]
        series.sort(key=lambda row: int(row["num_adapters"]))
        ends = [series[0], series[-1]]
        if ends[0]["num_adapters"] != ends[1]["num_adapters"]:
            measured = np.array([float(row["throughput_req_s"]) for row in ends])
            estimated = measured * ratios(ends, params)
            found[f"{figure}, ranks {ranks}"] = tuple(float(1 - rates[1] / rates[0]) for rates in (measured, estimated))
    return found


# --- engines that share nothing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine, by the times of its batches."""

    decode: BatchLatency
    prefill: BatchLatency
    most_batch: int
    joins: bool
    """Requests join the batch while it runs."""
    steps: float | None = None
    """Of the mean answer."""
    swap_s: float = 0.0
    """From one adapter to another one, where only requests of one are in a batch."""
    batches: bool = False
    """Requests of all adapters are one batch."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked of an engine, and what it served."""

    adapters: int
    alpha: float
    rate_rps: float
    duration_s: float
    longest: tuple[int, int]
    """Tokens of the longest prompts and answers."""
    measured_rps: float


def runs_of(system: str) -> list[Run]:
    """Return the Poisson runs of a system of profiles/lora/s-lora.csv; where there are several alike, each."""
    path = DATA.parents[2] / "profiles" / "lora" / "s-lora.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["system"] == system and row["cv"] == "1"]
    return [
        Run(
            adapters=int(row["num_adapters"]),
            alpha=float(row["zipf_alpha"]),
            rate_rps=float(row["request_rate"]),
            duration_s=float(row["duration_s"]),
            longest=tuple(int(row[name].strip("[]").split(",")[1]) for name in ("input_range", "output_range")),
            measured_rps=float(row["throughput_req_s"]),
        )
        for row in rows
    ]


def copies_that_fit(params: EstimatorParams) -> int:
    """Return how many merged copies of the model one GPU holds beside a request's cache."""
    model, gpu = load_model(MODEL), load_gpus().get(GPU)
    memory = replica_memory(model, gpu, CONFIG, params)
    one = float(kv_bytes_per_gpu(model, CONFIG, np.array([512.0]), is_read=False)[0])
    each = AdapterMemory(
        backbone_bytes=memory.weight_bytes, adapter_bytes=0.0, context_bytes=memory.activation_bytes, kv_bytes=one
    )
    return int(most_adapters(each, Isolation.DEDICATED, usable_bytes=memory.usable_bytes))


def sharing(run: Run, params: EstimatorParams) -> Engine:
    """Return S-LoRA's engine with all of a run's adapters in one batch."""
    many = Adapters(count=run.adapters, rank=DEFAULT_RANK, zipf_alpha=run.alpha, is_shared=True)
    return _of_s_lora(run, params, many)


def merging(run: Run, params: EstimatorParams) -> Engine:
    """Return S-LoRA's engine with one merged adapter at a time: nothing of it is fitted to runs that swap.

    A swap takes one adapter out of the attention's matrices and puts another one in: they are read and written twice.
    """
    model, gpu = load_model(MODEL), load_gpus().get(GPU)
    matrices = sum(
        group.count * each.count * each.inputs * each.outputs * UNQUANTIZED_BYTES
        for group in model.layers
        for each in group.projections
        if each.module in ATTENTION
    )
    return replace(_of_s_lora(run, params, None), swap_s=4 * matrices / gpu.bandwidth_bytes_per_s)


def _of_s_lora(run: Run, params: EstimatorParams, adapters: Adapters | None) -> Engine:
    """Return its times as estimated, and as large a batch as memory holds."""
    model, gpu = load_model(MODEL), load_gpus().get(GPU)
    tokens = [(SHORTEST + longest) / 2 for longest in run.longest]
    sizes = Sizes(input_tokens=tokens[0], output_tokens=tokens[1])
    room = replica_memory(model, gpu, CONFIG, params).kv_bytes
    batch = int(room // kv_bytes_per_gpu(model, CONFIG, np.array([sum(tokens)]), is_read=False)[0])
    prefill, decode = batch_times(model, gpu, CONFIG, sizes, params, adapters=adapters, batch=batch)
    return Engine(
        prefill=prefill,
        decode=decode or prefill,
        most_batch=batch,
        joins=True,
        steps=tokens[1] - 1,
        batches=adapters is not None,
    )


def replayed_rps(run: Run, engine: Engine) -> float:
    """Return the requests per second of the replayed run, its end included: the mean over the seeds."""
    return float(np.mean([_replayed_rps(run, engine, np.random.default_rng(seed)) for seed in SEEDS]))


def _replayed_rps(run: Run, engine: Engine, rng: np.random.Generator) -> float:
    n, k = rng.poisson(run.rate_rps * run.duration_s), run.adapters
    arrivals = np.sort(rng.uniform(0.0, run.duration_s, n))
    popularity = np.arange(1, k + 1) ** -run.alpha
    popularity /= popularity.sum()
    lengths = rng.uniform(SHORTEST, run.longest[1], n)
    swap = Quantiles(engine.swap_s, engine.swap_s)
    setting = Setting(
        gpu_bytes=1.0,
        host_bytes=float(k),
        backbone_bytes=0.6,  # one process fits, two do not
        context_bytes=0.0,
        kv_bytes=0.0,
        container_bytes=0.0,
        prefill=engine.prefill,
        decode=engine.decode,
        decode_steps=engine.steps,
        start=StartTimes(
            container_s=NOTHING,
            libraries_s=NOTHING,
            backbone_s=dict.fromkeys((Tier.DISK, Tier.HOST), NOTHING),
            backbone_shared_s=NOTHING,
            adapter_s=dict.fromkeys((Tier.DISK, Tier.HOST), swap),
            kernels_s=NOTHING,
        ),
    )
    functions = Functions(
        adapter_bytes=np.full(k, 1e-3),
        rate_rps=run.rate_rps * popularity,
        ttft_bound_s=np.full(k, np.inf),
        tpot_bound_s=np.full(k, np.inf),
    )
    policy = Policy(
        isolation=Isolation.DEDICATED,
        keep_alive_s=np.zeros(k),
        n_always_on=1,
        most_machines=1,
        most_batch=engine.most_batch,
        most_instances=1,
        joins=engine.joins,
        rents_before_evicting=False,
    )
    pool = PoolSize(n_engines=1, n_slots=k, most_running=engine.most_batch, request_kv_bytes=0.0)
    play = partial(replay_pool, size=pool) if engine.batches else partial(replay_functions, policy=policy)
    found = play(
        arrivals,
        rng.choice(k, size=n, p=popularity),
        functions=functions,
        setting=setting,
        rng=rng,
        end_s=run.duration_s,
        decode_factor=lengths / lengths.mean(),
    )
    return n / float(np.max(arrivals + found.records.e2e_s))


FITTED_TO = 50
"""Adapters of the most of those runs of PEFT that its batch and its time per token are taken from."""
BATCHES = range(2, 13)


def peft_runs() -> list[Run]:
    """Return the runs of PEFT over the number of adapters, those of both sets of ranks put together: they are alike."""
    runs = [run for run in runs_of("peft") if run.rate_rps == 2.0 and run.alpha == 1.0]
    counts = sorted({run.adapters for run in runs})
    return [
        replace(runs[0], adapters=n, measured_rps=float(np.mean([r.measured_rps for r in runs if r.adapters == n])))
        for n in counts
    ]


def peft() -> Engine:
    """Return an engine with batches of one adapter that run to their end, taken from the runs of up to `FITTED_TO`.

    Two numbers of it are not published: how many requests a batch has, and what a token takes. A batch takes a token's
    time however many requests it has, and a swap no time: adapters of rank 8 and of rank 64 were served alike.
    """
    runs = [run for run in peft_runs() if run.adapters <= FITTED_TO]
    found = [_of_batch(batch, runs) for batch in BATCHES]
    return min(found, key=lambda pair: pair[0])[1]


def _of_batch(batch: int, runs: list[Run]) -> tuple[float, Engine]:
    tokens = (SHORTEST + runs[0].longest[1]) / 2
    first = BatchLatency(first_s=1e-6, per_request_s=0.0)
    engine = Engine(
        prefill=first, decode=BatchLatency(first_s=tokens, per_request_s=0.0), most_batch=batch, joins=False
    )
    token_s = replayed_rps(runs[0], engine) / runs[0].measured_rps
    for _ in range(3):  # of a run that does not wait for arrivals, the time is proportional to that of a token
        engine = replace(engine, decode=BatchLatency(first_s=tokens * token_s, per_request_s=0.0))
        token_s *= replayed_rps(runs[0], engine) / runs[0].measured_rps
    errors = [abs(replayed_rps(run, engine) / run.measured_rps - 1) for run in runs]
    return max(errors), engine


# --- tables -----------------------------------------------------------------------------------------------------------


def _summary(errors: np.ndarray) -> str:
    return f"{np.median(errors):.1%} | {np.quantile(errors, 0.9):.1%}" if len(errors) else "- | -"


def s_lora_table(params: EstimatorParams) -> list[str]:
    """Return the errors of S-LoRA's throughput over the number of adapters, fitted and left out."""
    columns = {"nothing": ratios(s_lora_cells(), params)} | {name: left_out(name, params) for name in LEFT_OUT}
    lines = [
        "| adapters | runs | " + " | ".join(f"left out: {name}: median | 90% below" for name in columns) + " |",
        "|---|---|" + "---|---|" * len(columns),
    ]
    errors = {name: by_adapters(values) for name, values in columns.items()}
    for count, own in errors["nothing"].items():
        cells = [_summary(errors[name].get(count, np.zeros(0))) for name in columns]
        lines.append(f"| {count} | {len(own)} | {' | '.join(cells)} |")
    medians = [f"{median_over_adapters(values):.1%} | " for values in columns.values()]
    lines.append(f"| median of these medians | | {' | '.join(medians)} |")
    return lines


SHORT = f"runs of less than {LEAST_RUN_S:g} s"


def by_run(params: EstimatorParams) -> dict[str, np.ndarray]:
    """Return estimated / measured - 1 of S-LoRA's runs, each by itself, by how long they took."""
    cells = s_lora_cells()
    signed = ratios(cells, params) - 1.0
    is_short = np.array([float(row["duration_s"]) < LEAST_RUN_S for row in cells])
    known = np.isfinite(signed)
    return {
        "all": signed[known],
        f"runs of {LEAST_RUN_S:g} s": signed[known & ~is_short],
        SHORT: signed[known & is_short],
    }


def by_run_table(params: EstimatorParams) -> list[str]:
    lines = [
        "| S-LoRA's runs, each by itself | runs | error: median | 90% below | with its sign: median | 90% below "
        "| too high |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, signed in by_run(params).items():
        ends = " | ".join(f"{np.quantile(signed, level):+.1%}" for level in (0.5, 0.9))
        lines.append(f"| {name} | {len(signed)} | {_summary(np.abs(signed))} | {ends} | {np.mean(signed > 0):.0%} |")
    return lines


def falls_table(params: EstimatorParams) -> list[str]:
    lines = ["| S-LoRA's runs | throughput falls, measured | estimated |", "|---|---|---|"]
    lines += [f"| {name} | {pair[0]:.1%} | {pair[1]:.1%} |" for name, pair in falls(params).items()]
    return lines


def replayed_table(params: EstimatorParams) -> list[str]:
    """Return measured and replayed throughput over the number of adapters."""
    lines = [
        "| engine | adapters | runs | measured req/s, mean | of that with one | replayed | of that with one "
        "| error: median | 90% below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (runs, found) in replayed(params).items():
        counts = np.array([run.adapters for run in runs])
        measured = np.array([run.measured_rps for run in runs])
        for count in sorted(set(counts.tolist())):
            here, one = counts == count, counts == 1
            parts = [f"{v[here].mean():.3g} | {v[here].mean() / v[one].mean():.0%}" for v in (measured, found)]
            errors = _summary(np.abs(found[here] / measured[here] - 1))
            lines.append(f"| {name} | {count} | {here.sum()} | {' | '.join(parts)} | {errors} |")
    return lines


def replayed(params: EstimatorParams) -> dict[str, tuple[list[Run], np.ndarray]]:
    """Return the runs that are replayed with what each came to in requests per second."""
    engine = peft()
    of_pool = [run for run in runs_of("slora") if run.duration_s < LEAST_RUN_S]
    cases = {
        "S-LoRA, runs of 60 s": (of_pool, lambda run: sharing(run, params)),
        "merged, one at a time": (runs_of("merge"), lambda run: merging(run, params)),
        "PEFT": (peft_runs(), lambda _: engine),
    }
    return {
        name: (runs, np.array([replayed_rps(run, engine_of(run)) for run in runs]))
        for name, (runs, engine_of) in cases.items()
    }


def section(params: EstimatorParams) -> str:
    """Return the section of docs/benchmarks.md."""
    engine = peft()
    token_s = engine.decode.first_s / ((SHORTEST + peft_runs()[0].longest[1]) / 2)
    packed = next(run for run in runs_of("vllm"))
    estimate = estimate_rows([row for row in lora_cells() if row["engine"] == "vllm-packed"], params)[0].estimate
    lines = [
        "## Many adapters against measurements",
        "",
        "`python benchmarks/accuracy.py --adapters`: Llama-1-7B on one A10G (`profiles/lora/s-lora.csv`), requests/s",
        f"served at the request rate. S-LoRA's parameters are fitted to its saturated runs of {LEAST_RUN_S:g} s.",
        "Those of 60 s (one figure, all with 1, 2 or 5 adapters) are never full for long: they have no",
        "part in a fit, and a steady state does not meet them. Errors are |estimate / measured - 1|, with nothing left",
        "out, and with parameters fitted anew without the runs of the same figure, of the same ranks, or with many",
        "adapters:",
        "",
        *s_lora_table(params),
        "",
        "A median over numbers of adapters counts a number with two runs like one with fifty. Run by run, with nothing",
        "left out, and with the sign of the error (above 0: more is estimated than was served, so a plan on it would",
        "have too little):",
        "",
        *by_run_table(params),
        "",
        f"From the fewest adapters that a figure has beyond {MANY - 1} to 200:",
        "",
        *falls_table(params),
        "",
        f"Of merged copies of the weights an A10G holds {copies_that_fit(params)}, so vLLM with a copy per adapter",
        f"(before 0.3) was measured with one adapter alone: {packed.measured_rps:.3g} req/s, {estimate.rate_rps:.3g}"
        " estimated. With more",
        "the estimate is that they do not fit.",
        "",
        "Runs replayed request by request, with their beginning and end (`planner.simulate.functions`): S-LoRA as one",
        "pool; an adapter at a time, merged into the weights of S-LoRA's engine, of which nothing is fitted to these",
        "runs; and PEFT, batches of one adapter that run to their end. How many requests its batch has",
        f"({engine.most_batch}) and its time per token ({1e3 * token_s:.0f} ms) are not published: they are those that",
        f"meet the runs of up to {FITTED_TO} adapters best.",
        "",
        *replayed_table(params),
    ]
    return "\n".join(lines)
