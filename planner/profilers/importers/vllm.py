"""vLLM's own benchmarks: `vllm bench serve` (also swept), `throughput` and `latency`.

Source: vllm/benchmarks/{serve,throughput,latency}.py and benchmarks/sweep/serve.py. The files carry no version.
Keys that end in _ms are milliseconds, everything else is seconds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.profilers.importers.base import (
    MS,
    Reading,
    Replica,
    Run,
    all_documents,
    day_of_text,
    labelled_replica,
    merged,
    statistics_s,
)

if TYPE_CHECKING:
    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node

SERVE_KEYS = ("completed", "request_throughput", "total_input_tokens", "total_output_tokens", "output_throughput")
SERVE_MARKS = ("num_prompts", "endpoint_type", "tokenizer_id", "model_id")
"""One of these tells vLLM's files from those of its descendants."""


def serve_statistics_s(node: Node, metric: str) -> dict[str, float]:
    """Return the statistics of `metric` ("ttft") that a result has under keys such as p99_ttft_ms, in seconds."""
    keys = {statistic: f"{statistic}_{metric}_ms" for statistic in ("mean", "median", "p90", "p95", "p99")}
    return statistics_s(node, scale=MS, keys=keys)


def serve_load(node: Node) -> tuple[str, float | None, tuple[str, ...]]:
    """Return load kind, load and notes by the offered rate and the largest number in flight.

    Raises
    ------
    InputError: if one of them is not a number.
    """
    in_flight, rate = node.number("max_concurrency"), node.rate("request_rate")
    if rate is not None and math.isfinite(rate):
        capped = (f"at most {in_flight:g} requests in flight",) if in_flight else ()
        burstiness = node.number("burstiness")
        bursts = (f"gamma arrivals, burstiness {burstiness:g}",) if burstiness not in {None, 1.0} else ()
        return "request_rate", rate, capped + bursts
    if in_flight:
        return "concurrency", in_flight, ()
    return ("offline_max" if rate is not None else ""), None, ()


def serve_run(node: Node, *, label: str, replica: Replica, metric_e2e: str, n_requests: float | None) -> Run | str:
    """Return the run in one result of a serving benchmark that writes vLLM's keys, or why it is left out."""
    completed = node.number("completed") or 0.0
    if not completed:
        return "no request was completed"
    kind, load, notes = serve_load(node)
    failed = node.number("failed")
    sent = n_requests if n_requests is not None else completed + (failed or 0.0)
    if any(key.startswith("spec_decode_") and node.data[key] for key in node.data) or node.raw("accept_length"):
        notes = (*notes, "speculative decoding")
    inputs, outputs = node.number("total_input_tokens") or 0.0, node.number("total_output_tokens") or 0.0
    return Run(
        where=node.where(),
        label=label,
        tool="vllm bench serve",
        replica=replica,
        input_tokens=inputs / completed or None,
        output_tokens=outputs / completed or None,
        load_kind=kind,
        load=load,
        rate_rps=node.number("request_throughput"),
        output_tokens_per_s=node.number("output_throughput"),
        ttft_s=serve_statistics_s(node, "ttft"),
        tpot_s=serve_statistics_s(node, "tpot"),
        e2e_s=serve_statistics_s(node, metric_e2e),
        as_of=day_of_text(node.text("date")),
        n_requests=sent,
        n_failed=failed if failed is not None else max(sent - completed, 0.0),
        notes=notes,
    )


class VllmServe:
    """`vllm bench serve --save-result`, with --append-result, and the files of `vllm bench sweep serve`."""

    name = "vllm-serve"
    title = "vllm bench serve and sweep (JSON, several objects, summary.json, summary.csv)"

    def matches(self, content: Content) -> bool:
        """Return whether every result has the keys of `vllm bench serve`."""
        if content.rows:
            header = set(content.header)
            return header.issuperset(SERVE_KEYS) and bool(header.intersection(SERVE_MARKS))
        return all_documents(content, *SERVE_KEYS) and all(
            any(mark in node.data for mark in SERVE_MARKS) and "total_output_tokens_retokenized" not in node.data
            for node in content.documents
        )

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per result."""
        nodes = tuple(content.table()) if content.rows else content.documents
        runs: list[Run] = []
        left_out = []
        for index, node in enumerate(nodes):
            label = f"result {index + 1}" if len(nodes) > 1 else ""
            found = "a run whose rate ramps up is no steady state" if _ramps(node) else self._run(node, label)
            if isinstance(found, str):
                left_out.append(f"{label or 'the result'}: {found}")
            else:
                runs.append(found)
        return Reading(runs=tuple(runs), left_out=tuple(left_out))

    @staticmethod
    def _run(node: Node, label: str) -> Run | str:
        stated = Replica(model=node.text("model_id"))
        replica = merged(stated, labelled_replica(node))
        return serve_run(
            node, label=label, replica=replica, metric_e2e="e2el", n_requests=node.number("num_prompts") or None
        )


def _ramps(node: Node) -> bool:
    return bool(node.raw("ramp_up_strategy") or node.raw("rps_change_events"))


class VllmThroughput:
    """`vllm bench throughput --output-json`: all requests queued at once, no latency."""

    name = "vllm-throughput"
    title = "vllm bench throughput (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file has the keys of `vllm bench throughput`."""
        return all_documents(content, "elapsed_time", "num_requests", "total_num_tokens", "requests_per_second")

    def read(self, content: Content, given: Given) -> Reading:
        """Return one run; the file only knows input and output tokens together, so both come from the options.

        Raises
        ------
        InputError: if the options' sizes do not add up to the file's tokens per request.
        """
        runs = []
        for node in content.documents:
            requests, tokens = node.number("num_requests") or 0.0, node.number("total_num_tokens") or 0.0
            rate = node.number("requests_per_second")
            sizes = (*given.input_tokens, *given.output_tokens)
            each = tokens / requests if requests else 0.0
            if len(sizes) == 2 and each and not math.isclose(sum(sizes), each, rel_tol=0.05):
                raise InputError(
                    f"{sizes[0]:g} + {sizes[1]:g} tokens are not the file's {each:.5g} tokens per request.",
                    hint="Check --input-tokens and --output-tokens.",
                    where=node.where("total_num_tokens"),
                )
            runs.append(
                Run(
                    where=node.where(),
                    tool="vllm bench throughput",
                    replica=merged(labelled_replica(node), Replica(engine="vllm")),
                    load_kind="offline_max",
                    rate_rps=rate,
                    n_requests=requests,
                )
            )
        return Reading(runs=tuple(runs))


class VllmLatency:
    """`vllm bench latency --output-json`: one static batch again and again; seconds per batch."""

    name = "vllm-latency"
    title = "vllm bench latency (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file has the keys of `vllm bench latency`."""
        return all_documents(content, "avg_latency", "latencies", "percentiles")

    def read(self, content: Content, given: Given) -> Reading:
        """Return one run; batch and sizes come from the options (--batch, --input-tokens, --output-tokens).

        Raises
        ------
        InputError: if the options say another kind of load.
        """
        runs = []
        for node in content.documents:
            if given.load_kind not in {"", "static_batch"}:
                raise InputError(
                    "vllm bench latency runs static batches.", hint="Pass --batch N.", where=node.where("avg_latency")
                )
            latency_s = node.number("avg_latency")
            if not latency_s:
                raise InputError("The mean latency is zero.", where=node.where("avg_latency"))
            percentiles = node.node("percentiles")
            e2e = {"mean": latency_s} | statistics_s(
                percentiles, scale=1.0, keys={"median": "50", "p90": "90", "p95": "95", "p99": "99"}
            )
            runs.append(
                Run(
                    where=node.where(),
                    tool="vllm bench latency",
                    replica=merged(labelled_replica(node), Replica(engine="vllm")),
                    load_kind="static_batch",
                    load=given.load,
                    rate_rps=given.load / latency_s if given.load else None,
                    e2e_s=e2e,
                )
            )
        return Reading(runs=tuple(runs))
