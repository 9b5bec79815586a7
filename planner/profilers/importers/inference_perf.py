"""inference-perf (kubernetes-sigs): one stage of a load, or the summary of all. Seconds throughout.

Source: inference_perf/reportgen/base.py. `time_per_output_token` leaves the first token out, as here;
`normalized_time_per_output_token` is latency / output and never taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.profilers.importers.base import Reading, Run, all_documents, statistics_s

if TYPE_CHECKING:
    from planner.profilers.importers.base import Given
    from planner.profilers.importers.content import Content, Node

MAX_RATE_SHORTFALL = 0.05
"""How far the client may stay below the rate that it was asked for before the load is called another one."""


class InferencePerf:
    """inference-perf's stage_N_lifecycle_metrics.json and summary_lifecycle_metrics.json."""

    name = "inference-perf"
    title = "inference-perf, stage or summary (JSON)"

    def matches(self, content: Content) -> bool:
        """Return whether the file is a summary of requests."""
        return all_documents(content, "load_summary", "successes", "failures")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return the one run; the model and what served it are not in the file."""
        runs = []
        left_out = []
        for node in content.documents:
            found = self._run(node)
            if isinstance(found, str):
                left_out.append(f"the stage: {found}")
            else:
                runs.append(found)
        return Reading(runs=tuple(runs), left_out=tuple(left_out))

    @staticmethod
    def _run(node: Node) -> Run | str:
        good, bad = node.node("successes"), node.node("failures")
        n_good, n_bad = good.number("count") or 0.0, bad.number("count") or 0.0
        if not n_good:
            return "no request succeeded"
        latency, throughput = good.node("latency"), good.node("throughput")
        prompts = good.node("prompt_len" if good.raw("prompt_len") else "prompt_tokens")
        kind, load, notes = _load(node.node("load_summary"))
        if prompts.number("cached"):
            notes = (*notes, "part of the prompts came from the prefix cache")
        return Run(
            where=node.where(),
            tool="inference-perf",
            input_tokens=prompts.number("mean") or None,
            output_tokens=good.node("output_len").number("mean") or None,
            load_kind=kind,
            load=load,
            rate_rps=throughput.number("requests_per_sec"),
            output_tokens_per_s=throughput.number("output_tokens_per_sec"),
            ttft_s=statistics_s(latency.node("time_to_first_token"), scale=1.0),
            tpot_s=statistics_s(latency.node("time_per_output_token"), scale=1.0),
            e2e_s=statistics_s(latency.node("request_latency"), scale=1.0),
            n_requests=n_good + n_bad,
            n_failed=n_bad,
            notes=notes,
        )


def _load(summary: Node) -> tuple[str, float | None, tuple[str, ...]]:
    in_flight = summary.number("concurrency")
    if in_flight:
        return "concurrency", in_flight, ()
    asked, sent = summary.number("requested_rate"), summary.number("achieved_rate")
    if not asked:
        return "", None, ()  # the summary of several stages, or of one: only the user knows
    if sent is not None and sent < (1.0 - MAX_RATE_SHORTFALL) * asked:
        return "request_rate", sent, (f"the client sent {sent:.4g} of the {asked:.4g} requests/s asked for",)
    return "request_rate", asked, ()
