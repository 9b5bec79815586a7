"""llm-d: benchmark reports 0.2 and 0.2.1 (YAML or JSON), and the rows of llm-d Planner's table.

Source: llm-d-benchmark, benchmark_report/schema_v0_2.py and schema_v0_2_1.py; llm-d-planner, its benchmark data. The
report is the one format that names GPU and parallelism. Every statistic names its unit. Where GuideLLM measured, the
report's TPOT includes the first token and its ITL is taken instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.profilers.efficiency import engine_family, known_engines
from planner.profilers.importers.base import (
    MS,
    SUMMARY_KEYS,
    Reading,
    Replica,
    Run,
    all_documents,
    any_document,
    check_version,
    day_of_text,
    precision_of,
    statistics_s,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node

VERSIONS = ("0.2", "0.2.1")
UNITS: Mapping[str, Mapping[str, float]] = {
    "time": {"ms": 1e-3, "s": 1.0, "us": 1e-6},
    "time per token": {"ms/token": 1e-3, "s/token": 1.0},
    "tokens per second": {"tokens/s": 1.0},
    "requests per second": {"queries/s": 1.0},
    "count": {"count": 1.0},
}
_KEYS = {**SUMMARY_KEYS, "median": "p50"}


def _scale(node: Node, kind: str) -> float:
    unit = node.text("units")
    if unit not in UNITS[kind]:
        raise InputError(
            f"The unit of a {kind} is {unit!r}.", hint=f"Known: {', '.join(UNITS[kind])}.", where=node.where("units")
        )
    return UNITS[kind][unit]


def _statistics(node: Node, kind: str, keys: Mapping[str, str] = _KEYS) -> dict[str, float]:
    return statistics_s(node, scale=_scale(node, kind), keys=keys) if node.data else {}


def _mean(node: Node, kind: str) -> float | None:
    return _statistics(node, kind, {"mean": "mean"}).get("mean")


class LlmdReport:
    """llm-d benchmark report."""

    name = "llm-d-report"
    title = "llm-d benchmark report 0.2 and 0.2.1 (YAML, JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a benchmark report of any version."""
        return len(content.documents) == 1 and any_document(content, "version", "scenario", "results")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the one run; where several replicas served it, a replica's share of rate and load.

        Raises
        ------
        UnsupportedFormatError: if the version is another one.
        InputError: if prefill and decode ran apart, replicas are not alike, or a unit is not known.
        """
        node = content.documents[0]
        check_version(node.text("version"), VERSIONS, "llm-d's benchmark report", node.where("version"))
        replica, n_replicas = _stack(node)
        load_node = node.node("scenario", "load", "standardized")
        kind, load, notes = _report_load(load_node, n_replicas)
        performance = node.node("results", "request_performance", "aggregate")
        latency, rates, requests = (performance.node(key) for key in ("latency", "throughput", "requests"))
        tpot, note = _report_tpot(latency, load_node.text("tool"), requests)
        rate, tokens = (
            _mean(rates.node(key), unit)
            for key, unit in (("request_rate", "requests per second"), ("output_token_rate", "tokens per second"))
        )
        failed = requests.number("failures") or 0.0
        run = Run(
            where=node.where(),
            tool=load_node.text("tool") or "llm-d-benchmark",
            tool_version=load_node.text("tool_version"),
            replica=replica,
            input_tokens=_mean(requests.node("input_length"), "count"),
            output_tokens=_mean(requests.node("output_length"), "count"),
            load_kind=kind,
            load=load,
            rate_rps=rate / n_replicas if rate else None,
            output_tokens_per_s=tokens / n_replicas if tokens else None,
            ttft_s=_statistics(latency.node("time_to_first_token"), "time"),
            tpot_s=tpot,
            e2e_s=_statistics(latency.node("request_latency"), "time"),
            as_of=day_of_text(node.node("run", "time").text("start")),
            n_requests=requests.number("total"),
            n_failed=failed,
            notes=(f"llm-d benchmark report {node.text('version')}", *notes, *((note,) if note else ())),
        )
        return Reading(runs=(run,))


def _stack(node: Node) -> tuple[Replica, int]:
    """Return the replica that the engines of the stack are, and how many of it there are."""
    components = [part.node("standardized") for part in node.node("scenario").nodes("stack")]
    engines = [part for part in components if part.text("kind") == "inference_engine"]
    roles = {part.text("role") for part in engines}
    if "prefill" in roles:
        raise InputError(
            "Prefill and decode ran on replicas of their own: the report is of no single kind of replica.",
            where=node.where("scenario.stack"),
        )
    if len(engines) > 1:
        raise InputError(
            f"The stack has {len(engines)} different engines.", hint="Measure one.", where=node.where("scenario.stack")
        )
    if not engines:
        return Replica(), 1
    engine = engines[0]
    accelerator = engine.node("accelerator")
    parallel = accelerator.node("parallelism")
    ranks = parallel.count("dp") or 1
    tp, pp = parallel.count("tp"), parallel.count("pp")
    if ranks > 1:
        raise InputError(
            f"Each engine has {ranks} data-parallel ranks: more than one replica.", where=parallel.where("dp")
        )
    tool = engine.text("tool")
    is_engine = engine_family(tool) in map(engine_family, known_engines())
    arguments = next(
        part.node("native", "args")
        for part in node.node("scenario").nodes("stack")
        if part.node("standardized").text("kind") == "inference_engine"
    )
    replica = Replica(
        model=engine.node("model").text("name"),
        gpu=accelerator.text("model"),
        tensor_parallel=tp,
        pipeline_parallel=pp,
        expert_parallel=parallel.count("ep") if (parallel.number("ep") or 0) > 1 else None,
        engine=engine_family(tool) if is_engine else "",
        engine_version=engine.text("tool_version").rsplit(":", maxsplit=1)[-1].lstrip("v") if is_engine else "",
        precision=precision_of(_argument(arguments, "quantization"), _argument(arguments, "dtype")),
    )
    return replica, engine.count("replicas") or 1


def _argument(arguments: Node, name: str) -> str:
    value = arguments.data.get(f"--{name}") or arguments.data.get(name)
    return value if isinstance(value, str) else ""


def _report_load(node: Node, n_replicas: int) -> tuple[str, float | None, tuple[str, ...]]:
    rate, in_flight = node.number("rate_qps"), node.rate("concurrency")
    notes = (f"rate and load of one of {n_replicas} replicas",) if n_replicas > 1 else ()
    if node.node("prefix").data or node.node("multi_turn").raw("enabled"):
        notes = (*notes, "prompts share prefixes")
    if rate:
        return "request_rate", rate / n_replicas, notes
    if in_flight and math.isfinite(in_flight):
        return "concurrency", in_flight / n_replicas, notes
    return ("offline_max" if in_flight else ""), None, notes


def _report_tpot(latency: Node, tool: str, requests: Node) -> tuple[dict[str, float], str]:
    if "guidellm" not in tool.lower():
        return _statistics(latency.node("time_per_output_token"), "time per token"), ""
    is_fixed = requests.node("output_length").number("stddev") == 0.0
    keys = _KEYS if is_fixed else {"mean": "mean"}
    return _statistics(latency.node("inter_token_latency"), "time per token", keys), "TPOT is GuideLLM's ITL"


class LlmdPlanner:
    """llm-d Planner's rows: a model, hardware and size each, times in ms. Computed, so marked as estimates."""

    name = "llm-d-planner"
    title = "llm-d Planner's benchmark rows (JSON); marked as estimates"

    _KEYS = ("model_hf_repo", "hardware", "hardware_count", "requests_per_second")

    def matches(self, content: Content) -> bool:
        """Return whether the file has the Planner's rows."""
        if all_documents(content, *self._KEYS):
            return True
        rows = content.documents[0].data.get("benchmarks") if len(content.documents) == 1 else None
        return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and set(self._KEYS) <= set(rows[0])

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per row."""
        wrapped = all_documents(content, "benchmarks")
        nodes = list(content.documents[0].nodes("benchmarks")) if wrapped else list(content.documents)
        runs = [self._run(node, index) for index, node in enumerate(nodes)]
        return Reading(runs=tuple(runs), is_table=True)

    @staticmethod
    def _run(node: Node, index: int) -> Run:
        def times_s(metric: str) -> dict[str, float]:
            keys = {statistic: f"{metric}_{statistic}" for statistic in ("mean", "p90", "p95", "p99")}
            return statistics_s(node, scale=MS, keys=keys)

        rate = node.number("requests_per_second") or None
        framework = node.text("framework")
        return Run(
            where=node.where(),
            label=f"row {index + 1}",
            tool="llm-d-planner",
            replica=Replica(
                model=node.text("model_hf_repo"),
                gpu=node.text("hardware"),
                tensor_parallel=node.count("hardware_count"),
                engine=framework,
                engine_version=node.text("framework_version"),
            ),
            input_tokens=node.number("mean_input_tokens") or node.number("prompt_tokens"),
            output_tokens=node.number("mean_output_tokens") or node.number("output_tokens"),
            load_kind="request_rate",
            load=rate,
            rate_rps=rate,
            ttft_s=times_s("ttft"),
            tpot_s=times_s("itl"),
            e2e_s=times_s("e2e"),
            is_estimate=True,
        )
