"""GuideLLM reports, versions 1 and 2, and those from before reports had one: JSON, YAML, and CSV with three headers.

Source: guidellm/benchmark/schemas/{report,metrics}.py. Empty groups of requests are all zeros with count 0.
`time_per_output_token_ms` includes the first token and is never taken. `inter_token_latency_ms` is (last token - first
token) / (output - 1) of each request, pooled with a weight of output - 1: where all outputs are equally long its
statistics are those of TPOT; where they are not, TPOT is computed from the single requests, or only the mean is taken.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, Where
from planner.profilers.importers.base import (
    MS,
    Reading,
    Replica,
    Run,
    check_version,
    day_of_epoch,
    day_of_text,
    labelled_replica,
    merged,
    sample_statistics,
    statistics_s,
)
from planner.profilers.importers.content import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content

VERSIONS = ("1", "2", "none")
PERCENTILES = ("p001", "p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p999")
"""Order of the percentiles in a cell of the CSV; p001 is the 0.1th."""
CLIENT_WARNINGS = frozenset({"generation_delay_ttft", "root_late", "dataset_incomplete"})
"""Codes of warnings that the client was too slow or had too little to send."""
MAX_GENERATION_DELAY_FRACTION = 0.01
"""Generation delay over TTFT from which GuideLLM 0.8 itself warns; the CSV has no warnings of its own."""

_METRICS = {
    "rate": "requests_per_second",
    "latency": "request_latency",
    "ttft": "time_to_first_token_ms",
    "itl": "inter_token_latency_ms",
    "inputs": "prompt_token_count",
    "outputs": "output_token_count",
    "tokens": "output_tokens_per_second",
}
_CSV_METRICS = {
    "rate": ("Server Throughput", "Successful Requests/Sec"),
    "latency": ("Request Latency", "Successful Sec"),
    "ttft": ("Time to First Token", "Successful ms"),
    "itl": ("Inter Token Latency", "Successful ms"),
    "inputs": ("Token Metrics", "Successful Input Tokens"),
    "outputs": ("Token Metrics", "Successful Output Tokens"),
    "tokens": ("Token Throughput", "Successful Output Tokens/Sec"),
}
_KEYS = {"mean": "mean", "median": "median"}
_PERCENTILE_KEYS = {"p90": "p90", "p95": "p95", "p99": "p99"}


class GuideLlm:
    """GuideLLM."""

    name = "guidellm"
    title = "GuideLLM report, version 1, 2 or without one (JSON, YAML, CSV)"

    def matches(self, content: Content) -> bool:
        """Return whether the file has GuideLLM's benchmarks."""
        if content.rows:
            rows = [row for row in content.rows if row][:2]
            return len(rows) == 2 and rows[0][0] == "Run Info" and "Strategy" in rows[1]
        return len(content.documents) == 1 and _is_report(content.documents[0])

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per benchmark.

        Raises
        ------
        UnsupportedFormatError: if the report has another version.
        InputError: if a value is not what its key holds, or the report has no benchmark.
        """
        if content.rows:
            found = _of_csv(content)
        else:
            report = content.documents[0]
            check_version(
                report.node("metadata").text("version") or "none", VERSIONS, "GuideLLM reports", content.where
            )
            found = [_benchmark(report, node, index) for index, node in enumerate(report.nodes("benchmarks"))]
        if not found:
            raise InputError("The report has no benchmark.", where=content.where)
        return Reading(
            runs=tuple(run for run in found if isinstance(run, Run)),
            left_out=tuple(reason for reason in found if isinstance(reason, str)),
        )


def _is_report(node: Node) -> bool:
    benchmarks = node.data.get("benchmarks")
    if not isinstance(benchmarks, list):
        return False
    if isinstance(node.data.get("metadata"), dict) and "guidellm_version" in node.data["metadata"]:
        return True
    first = benchmarks[0] if benchmarks else None
    metrics = first.get("metrics") if isinstance(first, dict) else None
    return isinstance(metrics, dict) and "time_to_first_token_ms" in metrics


def _benchmark(report: Node, node: Node, index: int) -> Run | str:
    label = f"benchmark {index + 1}"
    version = report.node("metadata").text("guidellm_version")
    bottleneck, warnings = _warnings(node)
    if bottleneck:
        return f"{label}: {bottleneck}"
    config = node.node("config" if node.raw("config") else "args")
    strategy = config.node("strategy")
    load = _load(strategy, strategy.text("type_") or strategy.text("kind"))
    if isinstance(load, str):
        return f"{label}: {load}"
    metrics = node.node("metrics")
    totals = metrics.node("request_totals")
    if not totals.data:
        totals = node.node("run_stats", "requests_made")
    groups = {name: _successful(metrics.node(key)) for name, key in _METRICS.items()}
    tpot, note = _tpot(node, groups)
    stated = merged(
        labelled_replica(report.node("config", "metadata", "labels")), Replica(model=_model(report, config))
    )
    notes = (*load[2], *warnings, *((note,) if note else ()))
    return _run(
        groups,
        where=node.where(),
        label=label,
        version=version,
        replica=stated,
        load=load[:2],
        totals=(totals.number("successful"), totals.number("errored")),
        as_of=day_of_epoch(node.number("start_time") or node.node("run_stats").number("start_time")),
        tpot_s=tpot,
        notes=notes,
    )


def _run(
    groups: Mapping[str, Node],
    *,
    where: Where,
    label: str,
    version: str,
    replica: Replica,
    load: tuple[str, float | None],
    totals: tuple[float | None, float | None],
    as_of: Any,  # noqa: ANN401 - a date or None
    tpot_s: Mapping[str, float],
    notes: tuple[str, ...],
) -> Run | str:
    if not groups["rate"].data or totals[0] == 0:
        return f"{label}: no request succeeded"
    good, bad = totals
    return Run(
        where=where,
        label=label,
        tool="guidellm",
        tool_version=version,
        replica=replica,
        input_tokens=groups["inputs"].number("mean") or None,
        output_tokens=groups["outputs"].number("mean") or None,
        length_dist="fixed" if _is_fixed(groups["inputs"]) and _is_fixed(groups["outputs"]) else "",
        load_kind=load[0],
        load=load[1],
        rate_rps=groups["rate"].number("mean"),
        output_tokens_per_s=groups["tokens"].number("mean"),
        ttft_s=_statistics_s(groups["ttft"], MS),
        tpot_s=tpot_s,
        e2e_s=_statistics_s(groups["latency"], 1.0),
        as_of=as_of,
        n_requests=(good or 0.0) + (bad or 0.0),
        n_failed=bad or 0.0,
        notes=notes,
    )


def _successful(metric: Node) -> Node:
    """Return the group of successful requests; an empty one if nothing was counted."""
    group = metric.node("successful")
    return group if group.number("count") else Node(data={}, place=group.place, at=group.at)


def _statistics_s(group: Node, scale: float) -> dict[str, float]:
    found = statistics_s(group, scale=scale, keys=_KEYS)
    return found | statistics_s(group.node("percentiles"), scale=scale, keys=_PERCENTILE_KEYS)


def _is_fixed(group: Node) -> bool:
    return bool(group.data) and group.number("std_dev") == 0.0


def _tpot(node: Node, groups: Mapping[str, Node]) -> tuple[dict[str, float], str]:
    """Return the statistics of TPOT and a note on how they came about."""
    if not groups["itl"].data:
        return {}, ""
    if _is_fixed(groups["outputs"]):
        return _statistics_s(groups["itl"], MS), ""
    single = _single_tpots_s(node)
    count = groups["outputs"].number("count")
    if single and count and len(single) == count:
        return sample_statistics(single), "TPOT from the single requests"
    mean = statistics_s(groups["itl"], scale=MS, keys={"mean": "mean"})
    return mean, "mean TPOT over tokens, not requests; no percentiles, as outputs differ in length"


def _single_tpots_s(node: Node) -> list[float]:
    requests = node.node("requests")
    if not isinstance(requests.data.get("successful"), list):
        return []
    found = []
    for request in requests.nodes("successful"):
        latency, first, tokens = (
            request.number(key) for key in ("request_latency", "time_to_first_token_ms", "output_tokens")
        )
        if latency is not None and first is not None and tokens is not None and tokens > 1:
            found.append((latency - first * MS) / (tokens - 1.0))
    return found


def _warnings(node: Node) -> tuple[str, tuple[str, ...]]:
    """Return the warning that makes the benchmark useless ("" if there is none), and the others as notes."""
    others = []
    for warning in node.nodes("warnings"):
        text = warning.text("message") or warning.text("code")
        if warning.text("code") in CLIENT_WARNINGS or "bottleneck" in warning.text("note").lower():
            return f"the client was the bottleneck: {text.rstrip('.')}", ()
        others.append(text)
    return "", tuple(others)


def _load(strategy: Node, kind: str) -> tuple[str, float | None, tuple[str, ...]] | str:
    """Return load kind, load and notes of a strategy, or why it is no steady load."""
    if strategy.number("rampup_duration"):
        return "a run whose load ramps up is no steady state"
    if kind == "synchronous":
        return "concurrency", 1.0, ()
    if kind == "concurrent":
        return "concurrency", strategy.number("streams") or strategy.number("max_concurrency"), ()
    if kind == "throughput":
        in_flight = strategy.number("max_concurrency")
        return ("concurrency", in_flight, ()) if in_flight else ("offline_max", None, ())
    if kind in {"poisson", "async", "constant"}:
        notes = ("evenly spaced arrivals",) if kind == "constant" else ()
        return "request_rate", strategy.number("rate"), notes
    return f"the strategy {kind or '(none)'} is no steady load"


def _model(report: Node, config: Node) -> str:
    if "config" in report.data:
        stated = report.node("config", "spec", "backend").text("model")
    else:
        arguments = report.node("args")
        stated = arguments.node("backend_kwargs").text("model") or arguments.text("model")
    backend = config.data.get("backend")
    return stated or (config.node("backend").text("model") if isinstance(backend, dict) else "")


# --------------------------------------------------------------------------------------------------------------- CSV


def _of_csv(content: Content) -> list[Run | str]:
    rows = list(enumerate(content.rows, start=1))
    lines = [(line, row) for line, row in rows if row]
    if len(lines) < 3:
        raise InputError("The CSV has fewer than GuideLLM's three header rows.", where=content.where)
    head = [row for _, row in lines[:3]]
    width = len(head[0])
    columns = {tuple(row[i] if i < len(row) else "" for row in head): i for i in range(width)}
    found: list[Run | str] = []
    for line, row in lines[3:]:
        place = Where(path=content.path, line=line)
        if len(row) != width:
            raise InputError(f"The row has {len(row)} cells, the header {width}.", where=place)
        cells = {names: row[i] for names, i in columns.items()}
        found.append(_csv_benchmark(cells, place, len(found)))
    return found


def _csv_benchmark(cells: Mapping[tuple[str, ...], str], place: Where, index: int) -> Run | str:
    label = f"benchmark {index + 1}"
    metadata = _json_cell(cells, ("Runtime Info", "Metadata", ""), place)
    version = metadata.text("version") or "none"
    check_version(version, VERSIONS, "GuideLLM reports", place)
    groups = {name: _csv_group(cells, *names, place=place) for name, names in _CSV_METRICS.items()}
    delay = _csv_group(cells, "Generation Delay", "Sec", place=place).number("mean")
    first = groups["ttft"].number("mean")
    if delay and first and delay / (first * MS) > MAX_GENERATION_DELAY_FRACTION:
        return (
            f"{label}: the client was the bottleneck: making a request took {delay / (first * MS):.0%} of the time to"
            f" the first token ({MAX_GENERATION_DELAY_FRACTION:.0%} at most)"
        )
    kind, _, value = cells.get(("Benchmark", "Strategy", ""), "").partition("@")
    strategy = Node(data={"rate": value, "streams": value} if value else {}, place=place, at=kind, is_text=True)
    load = _load(strategy, kind)
    if isinstance(load, str):
        return f"{label}: {load}"
    counts = Node(
        data={name: cells.get(("Request Counts", name, ""), "") for name in ("Successful", "Errored")},
        place=place,
        at="Request Counts",
        is_text=True,
    )
    if _is_fixed(groups["outputs"]):
        tpot, note = _statistics_s(groups["itl"], MS), ""
    else:
        tpot = statistics_s(groups["itl"], scale=MS, keys={"mean": "mean"})
        note = "mean TPOT over tokens, not requests; no percentiles, as outputs differ in length" if tpot else ""
    return _run(
        groups,
        where=place,
        label=label,
        version=metadata.text("guidellm_version"),
        replica=Replica(model=_json_cell(cells, ("Run Info", "Backend", ""), place).text("model")),
        load=load[:2],
        totals=(counts.number("Successful"), counts.number("Errored")),
        as_of=day_of_text(cells.get(("Timings", "Start Time", ""), "")),
        tpot_s=tpot,
        notes=(*load[2], *((note,) if note else ())),
    )


def _csv_group(cells: Mapping[tuple[str, ...], str], group: str, name: str, *, place: Where) -> Node:
    """Return one metric's cells as the JSON report has them; empty where its mean is."""
    texts = {stat: cells.get((group, name, stat), "") for stat in ("Mean", "Median", "Std Dev")}
    if not texts["Mean"]:
        return Node(data={}, place=place, at=group)
    try:
        levels = json.loads(cells.get((group, name, "Percentiles"), "") or "[]")
    except ValueError as error:
        raise InputError(
            "The percentiles are no list.", where=Where(path=place.path, line=place.line, field=group)
        ) from error
    data: dict[str, Any] = {key.lower().replace(" ", "_"): text for key, text in texts.items()}
    if isinstance(levels, list) and len(levels) == len(PERCENTILES):
        data["percentiles"] = dict(zip(PERCENTILES, levels, strict=True))
    return Node(data=data, place=place, at=group, is_text=True)


def _json_cell(cells: Mapping[tuple[str, ...], str], names: tuple[str, ...], place: Where) -> Node:
    try:
        data = json.loads(cells.get(names, "") or "{}")
    except ValueError:
        data = {}
    return Node(data=data if isinstance(data, dict) else {}, place=place, at=", ".join(names[:2]))
