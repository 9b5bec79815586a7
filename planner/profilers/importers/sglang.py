"""`python -m sglang.bench_serving`: a result a line, keys close to vLLM's.

Source: python/sglang/bench_serving.py. TPOT is (latency - TTFT) / (output - 1). The files carry no version of their
own; `server_info`, where the server gave it, has the engine's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.profilers.importers.base import (
    Reading,
    Replica,
    all_documents,
    labelled_replica,
    merged,
    precision_of,
)
from planner.profilers.importers.settle import MAX_TOKEN_COUNT_GAP
from planner.profilers.importers.vllm import SERVE_KEYS, serve_run

if TYPE_CHECKING:
    from planner.profilers.importers.base import Given, Run
    from planner.profilers.importers.content import Content, Node

NATIVE_BACKENDS = frozenset({"sglang", "sglang-native"})
"""Clients of SGLang's own API, where the output tokens are the server's count."""


class SglangServing:
    """SGLang's bench_serving."""

    name = "sglang"
    title = "SGLang bench_serving (JSON lines)"

    def matches(self, content: Content) -> bool:
        """Return whether every result counts output tokens twice, as only SGLang does."""
        return all_documents(content, *SERVE_KEYS, "total_output_tokens_retokenized")

    def read(self, content: Content, given: Given) -> Reading:  # noqa: ARG002 - the file says all that can be used
        """Return one run per result."""
        runs = []
        left_out = []
        for index, node in enumerate(content.documents):
            label = f"result {index + 1}" if len(content.documents) > 1 else ""
            found = self._run(node, label)
            if isinstance(found, str):
                left_out.append(f"{label or 'the result'}: {found}")
            else:
                runs.append(found)
        return Reading(runs=tuple(runs), left_out=tuple(left_out))

    def _run(self, node: Node, label: str) -> Run | str:
        server = node.node("server_info")
        ranks = server.count("dp_size") or 1
        if ranks > 1:
            return f"the server runs {ranks} data-parallel ranks: that is more than one replica"
        if node.raw("request_rate") == "trace":
            return "arrivals follow a trace: no steady load"
        backend = node.text("backend")
        is_native = backend in NATIVE_BACKENDS
        replica = Replica(
            model=server.text("model_path") or node.text("model_id") or node.text("model"),
            tensor_parallel=server.count("tp_size"),
            pipeline_parallel=server.count("pp_size"),
            expert_parallel=server.count("ep_size"),
            engine="sglang" if server.data or is_native else "",
            engine_version=server.text("version"),
            precision=precision_of(server.text("quantization"), server.text("dtype")),
        )
        replica = merged(replica, labelled_replica(node))
        run = serve_run(node, label=label, replica=replica, metric_e2e="e2e_latency", n_requests=None)
        if isinstance(run, str):
            return run
        counted, recounted = node.number("total_output_tokens"), node.number("total_output_tokens_retokenized")
        notes = run.notes
        if counted and recounted and abs(recounted / counted - 1.0) > MAX_TOKEN_COUNT_GAP:
            told = f"{counted:g} output tokens were counted, {recounted:g} when the texts were tokenized again"
            if not is_native:
                return f"{told}: with {backend or 'this backend'} nobody knows how many the server made"
            notes = (*notes, told)
        return replace(run, tool="sglang.bench_serving", notes=notes)
