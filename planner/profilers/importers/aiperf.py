"""AIPerf (schema 1.x: JSON, CSV, JSON lines of requests) and its predecessor GenAI-Perf (JSON).

Source: aiperf/common/models/export_models.py, aiperf/metrics/types; genai_perf/export_data/json_exporter.py. Every
metric names its unit, which is read and never assumed. `inter_token_latency` is (latency - TTFT) / (output - 1), which
is TPOT. Tokens are counted by the client; where the server's count (`usage_*`) is there too it is preferred, and where
the two differ by more than 5% in the output, times per token and tokens per second are wrong and nothing is taken.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.profilers.importers.base import (
    SUMMARY_KEYS,
    Reading,
    Replica,
    Run,
    all_documents,
    any_document,
    check_version,
    day_of_epoch,
    day_of_text,
    sample_statistics,
    statistics_s,
)
from planner.profilers.importers.content import Node
from planner.profilers.importers.settle import MAX_TOKEN_COUNT_GAP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.errors import Where
    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content

SCHEMAS = ("1.0", "1.1", "1.2", "1.3", "1.4")
TIME_UNITS_S: Mapping[str, float] = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
RATE_UNITS: Mapping[str, float] = {"requests/sec": 1.0, "requests/s": 1.0, "tokens/sec": 1.0, "tokens/s": 1.0}
COUNT_UNITS: Mapping[str, float] = {"tokens": 1.0, "requests": 1.0, "count": 1.0}
_KEYS = {**SUMMARY_KEYS, "mean": "avg", "median": "p50"}


def scale_of(metric: Node, units: Mapping[str, float]) -> float:
    """Return what one unit of a metric is in s, tokens or req/s.

    Raises
    ------
    InputError: if the unit is none of `units`.
    """
    unit = metric.text("unit")
    if unit not in units:
        raise InputError(f"The unit is {unit!r}.", hint=f"Known here: {', '.join(units)}.", where=metric.where("unit"))
    return units[unit]


def metric_mean(node: Node, tag: str, units: Mapping[str, float]) -> float | None:
    """Return the mean of the metric `tag` in canonical units; None if it is absent or nothing was counted."""
    metric = node.node(tag)
    if not metric.data or metric.number("count") == 0 or metric.raw("avg") is None:
        return None
    return (metric.number("avg") or 0.0) * scale_of(metric, units)


def metric_statistics_s(node: Node, tag: str) -> dict[str, float]:
    """Return the statistics of the time `tag` in seconds; empty if it is absent or nothing was counted."""
    metric = node.node(tag)
    if not metric.data or metric.number("count") == 0:
        return {}
    return statistics_s(metric, scale=scale_of(metric, TIME_UNITS_S), keys=_KEYS)


def check_token_counts(client: float | None, server: float | None, where: Where) -> None:
    """Refuse a run whose output tokens the client counted otherwise than the server.

    Raises
    ------
    InputError: if they differ by more than `MAX_TOKEN_COUNT_GAP`.
    """
    if client and server and abs(client / server - 1.0) > MAX_TOKEN_COUNT_GAP:
        raise InputError(
            f"The client counted {client:g} output tokens per request, the server {server:g}: times per token and"
            " tokens/s are off by as much.",
            hint="Measure again with the tokenizer of the served model.",
            where=where,
        )


class AiPerf:
    """AIPerf's summary in JSON."""

    name = "aiperf"
    title = "AIPerf summary, schema 1.0 to 1.4 (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a summary of AIPerf's."""
        return len(content.documents) == 1 and any_document(content, "aiperf_version", "input_config")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the one run.

        Raises
        ------
        UnsupportedFormatError: if the schema is another one.
        InputError: if the run was cancelled or is not complete, ramps up, or counts tokens otherwise than the server.
        """
        node = content.documents[0]
        check_version(node.text("schema_version") or "none", SCHEMAS, "AIPerf's summary", node.where("schema_version"))
        if node.raw("was_cancelled") or node.raw("is_complete") is False:
            why = node.text("incomplete_reason")
            raise InputError(
                f"The run was cancelled or is not complete{f' ({why})' if why else ''}.", where=content.where
            )
        config = node.node("input_config")
        kind, load, streaming = _phase(config)
        outputs, server_outputs = (
            metric_mean(node, tag, COUNT_UNITS) for tag in ("output_sequence_length", "usage_completion_tokens")
        )
        check_token_counts(outputs, server_outputs, node.where("output_sequence_length"))
        inputs, server_inputs = (
            metric_mean(node, tag, COUNT_UNITS) for tag in ("input_sequence_length", "usage_prompt_tokens")
        )
        good = metric_mean(node, "request_count", COUNT_UNITS) or 0.0
        failed = metric_mean(node, "error_request_count", COUNT_UNITS) or sum(
            error.number("count") or 0.0 for error in node.nodes("error_summary")
        )
        if not good:
            return Reading(runs=(), left_out=("the run: no request succeeded",))
        run = Run(
            where=node.where(),
            tool="aiperf",
            tool_version=node.text("aiperf_version"),
            replica=Replica(model=_model_name(config)),
            input_tokens=server_inputs or inputs or None,
            output_tokens=server_outputs or outputs or None,
            load_kind=kind,
            load=load,
            rate_rps=metric_mean(node, "request_throughput", RATE_UNITS),
            output_tokens_per_s=metric_mean(node, "output_token_throughput", RATE_UNITS),
            ttft_s=metric_statistics_s(node, "time_to_first_token") if streaming else {},
            tpot_s=metric_statistics_s(node, "inter_token_latency") if streaming else {},
            e2e_s=metric_statistics_s(node, "request_latency"),
            as_of=day_of_text(node.text("start_time")),
            n_requests=good + failed,
            n_failed=failed,
            notes=_prompt_note(inputs, server_inputs),
        )
        return Reading(runs=(run,))


def _prompt_note(client: float | None, server: float | None) -> tuple[str, ...]:
    if client and server and abs(client / server - 1.0) > MAX_TOKEN_COUNT_GAP:
        return (f"input tokens as the server counted them ({server:.4g}); the client meant {client:.4g}",)
    return ()


def _model_name(config: Node) -> str:
    models = config.node("models")
    return next((item.text("name") for item in models.nodes("items")), "")


def _phase(config: Node) -> tuple[str, float | None, bool]:
    """Return load kind, load and whether answers were streamed, of the phase that was measured.

    Raises
    ------
    InputError: if there are several such phases, or the load ramps up.
    """
    phases = [phase for phase in config.nodes("phases") if "warmup" not in (phase.text("kind"), phase.text("name"))]
    if len(phases) > 1:
        raise InputError(
            "The run has several measured phases.", hint="Import runs of one.", where=config.where("phases")
        )
    phase = phases[0] if phases else config.node("loadgen")
    ramps = [key for key, value in phase.data.items() if "ramp" in key.lower() and value]
    if ramps:
        raise InputError("A run whose load ramps up is no steady state.", where=phase.where(ramps[0]))
    streaming = config.node("endpoint").raw("streaming") is not False
    return *_load(phase.number("concurrency"), phase.rate("request_rate")), streaming


def _load(concurrency: float | None, rate: float | None) -> tuple[str, float | None]:
    if rate and rate != float("inf"):
        return "request_rate", rate
    return ("concurrency", concurrency) if concurrency else ("", None)


class AiPerfCsv:
    """AIPerf's summary in CSV: two tables one below the other, figures rounded to two decimals."""

    name = "aiperf-csv"
    title = "AIPerf summary (CSV)"

    _NAMES: Mapping[str, str] = {
        "Request Latency": "request_latency",
        "Time to First Token": "time_to_first_token",
        "Inter Token Latency": "inter_token_latency",
        "Input Sequence Length": "input_sequence_length",
        "Output Sequence Length": "output_sequence_length",
        "Usage Prompt Tokens": "usage_prompt_tokens",
        "Usage Completion Tokens": "usage_completion_tokens",
        "Request Throughput": "request_throughput",
        "Output Token Throughput": "output_token_throughput",
        "Request Count": "request_count",
        "Error Request Count": "error_request_count",
    }

    def matches(self, content: Content) -> bool:
        """Return whether the first table is AIPerf's."""
        return content.header[:3] == ("Metric", "avg", "min") and "p99" in content.header

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the one run; model and load are not in the file, nor whether it was complete.

        Raises
        ------
        InputError: if a unit is not known, or the client counted tokens otherwise than the server.
        """
        node = Node(data=self._metrics(content), place=content.where, is_text=True)
        outputs, server_outputs = (
            metric_mean(node, tag, COUNT_UNITS) for tag in ("output_sequence_length", "usage_completion_tokens")
        )
        check_token_counts(outputs, server_outputs, content.where)
        good = metric_mean(node, "request_count", COUNT_UNITS) or 0.0
        failed = metric_mean(node, "error_request_count", COUNT_UNITS) or 0.0
        inputs, server_inputs = (
            metric_mean(node, tag, COUNT_UNITS) for tag in ("input_sequence_length", "usage_prompt_tokens")
        )
        run = Run(
            where=content.where,
            tool="aiperf",
            input_tokens=server_inputs or inputs or None,
            output_tokens=server_outputs or outputs or None,
            rate_rps=metric_mean(node, "request_throughput", RATE_UNITS),
            output_tokens_per_s=metric_mean(node, "output_token_throughput", RATE_UNITS),
            ttft_s=metric_statistics_s(node, "time_to_first_token"),
            tpot_s=metric_statistics_s(node, "inter_token_latency"),
            e2e_s=metric_statistics_s(node, "request_latency"),
            n_requests=good + failed,
            n_failed=failed,
            notes=(
                "AIPerf's CSV rounds to 0.01 and does not say whether the run was complete",
                *_prompt_note(inputs, server_inputs),
            ),
        )
        return Reading(runs=(run,))

    def _metrics(self, content: Content) -> dict[str, dict[str, str]]:
        """Return the metrics of both tables as the JSON has them."""
        found: dict[str, dict[str, str]] = {}
        header: tuple[str, ...] = ()
        for row in content.rows:
            if row[:1] == ("Metric",):
                header = row
            elif not row:
                header = ()
            elif header:
                match = re.fullmatch(r"(.+?)(?: \(([^()]+)\))?", row[0])
                tag = self._NAMES.get(match[1]) if match else None
                if match and tag:
                    cells = dict(zip(header[1:], row[1:], strict=False))
                    unit = match[2] or "requests"
                    found[tag] = {"unit": unit, "avg": cells.get("avg", cells.get("Value", "")), **cells}
        return found


class AiPerfRecords:
    """AIPerf's record of every request, a JSON object a line."""

    name = "aiperf-records"
    title = "AIPerf records of requests (JSON lines)"

    def matches(self, content: Content) -> bool:
        """Return whether every line is one request's record."""
        return all_documents(content, "metadata", "metrics") and all(
            isinstance(node.data["metadata"], dict) and "request_start_ns" in node.data["metadata"]
            for node in content.documents
        )

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run over the requests of the profiling phase; model and load are not in the file.

        Raises
        ------
        InputError: if a unit is not known, or the client counted tokens otherwise than the server.
        """
        records = [
            node for node in content.documents if node.node("metadata").text("benchmark_phase") in {"", "profiling"}
        ]
        good = [node for node in records if not node.raw("error") and not node.node("metadata").raw("was_cancelled")]
        if not good:
            return Reading(runs=(), left_out=("the records: no request succeeded",))
        starts, ends = (
            [node.node("metadata").number(key) or 0.0 for node in good]
            for key in ("request_start_ns", "request_end_ns")
        )
        span_s = (max(ends) - min(starts)) * TIME_UNITS_S["ns"]
        if span_s <= 0:
            raise InputError("The requests end before they start.", where=content.where)
        outputs, server_outputs = (
            _mean(_values(good, tag, COUNT_UNITS)) for tag in ("output_sequence_length", "usage_completion_tokens")
        )
        check_token_counts(outputs, server_outputs, content.where)
        inputs, server_inputs = (
            _mean(_values(good, tag, COUNT_UNITS)) for tag in ("input_sequence_length", "usage_prompt_tokens")
        )
        run = Run(
            where=content.where,
            tool="aiperf",
            input_tokens=server_inputs or inputs,
            output_tokens=server_outputs or outputs,
            rate_rps=len(good) / span_s,
            ttft_s=sample_statistics(_values(good, "time_to_first_token", TIME_UNITS_S)),
            tpot_s=sample_statistics(_values(good, "inter_token_latency", TIME_UNITS_S)),
            e2e_s=sample_statistics(_values(good, "request_latency", TIME_UNITS_S)),
            as_of=day_of_epoch(min(starts) * TIME_UNITS_S["ns"]),
            n_requests=float(len(records)),
            n_failed=float(len(records) - len(good)),
            notes=("rate from the first request to the last answer", *_prompt_note(inputs, server_inputs)),
        )
        return Reading(runs=(run,))


def _values(records: list[Node], tag: str, units: Mapping[str, float]) -> list[float]:
    metrics = (node.node("metrics").node(tag) for node in records)
    return [(metric.number("value") or 0.0) * scale_of(metric, units) for metric in metrics if metric.data]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


class GenAiPerf:
    """GenAI-Perf: AIPerf's shape without a version."""

    name = "genai-perf"
    title = "GenAI-Perf summary (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a summary of GenAI-Perf's."""
        return (
            len(content.documents) == 1
            and any_document(content, "input_config", "request_throughput", "request_latency")
            and not any_document(content, "aiperf_version")
            and not any_document(content, "schema_version")
        )

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the one run.

        Raises
        ------
        InputError: if more tokens were counted than asked for, as 24.11 and 24.12 did.
        """
        node = content.documents[0]
        config = node.node("input_config")
        stimulus = config.data.get("perf_analyzer")
        settings = config.node("perf_analyzer", "stimulus") if isinstance(stimulus, dict) else config
        kind, load = _load(settings.number("concurrency"), settings.rate("request_rate"))
        outputs = metric_mean(node, "output_sequence_length", COUNT_UNITS)
        asked = config.number("output_tokens_mean")
        is_exact = not config.number("output_tokens_stddev")
        if outputs and asked and is_exact and outputs > asked * (1.0 + MAX_TOKEN_COUNT_GAP):
            raise InputError(
                f"{outputs:g} output tokens per request were counted, {asked:g} were asked for: times per token and"
                " tokens/s are off by as much (GenAI-Perf 24.11 and 24.12 did so when streaming).",
                hint="Measure again with a later version, or with AIPerf.",
                where=node.where("output_sequence_length"),
            )
        streaming = config.raw("streaming")
        if streaming is None:
            endpoint = config.data.get("endpoint")
            streaming = endpoint.get("streaming") if isinstance(endpoint, dict) else True
        models = config.data.get("model_names") or config.data.get("model")
        name = models[0] if isinstance(models, list) and models else models
        run = Run(
            where=node.where(),
            tool="genai-perf",
            replica=Replica(model=name if isinstance(name, str) and name.isprintable() else ""),
            input_tokens=metric_mean(node, "input_sequence_length", COUNT_UNITS),
            output_tokens=outputs,
            load_kind=kind,
            load=load,
            rate_rps=metric_mean(node, "request_throughput", RATE_UNITS),
            output_tokens_per_s=metric_mean(node, "output_token_throughput", RATE_UNITS),
            ttft_s=metric_statistics_s(node, "time_to_first_token") if streaming else {},
            tpot_s=metric_statistics_s(node, "inter_token_latency") if streaming else {},
            e2e_s=metric_statistics_s(node, "request_latency"),
            notes=("tokens as the client counted them",),
        )
        return Reading(runs=(run,))
