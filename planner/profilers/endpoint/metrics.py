"""What a server's own Prometheus metrics say during a run: KV memory in use, queue, preemptions.

Names as the engines export them: vLLM's docs/usage/metrics.md, SGLang's production metrics page, TGI's and llama.cpp's
server documentation. A server without metrics is measured all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.profilers.endpoint.client import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.profilers.endpoint.client import Client

NAMES: Mapping[str, tuple[str, ...]] = {
    "kv_usage_fraction": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
    "n_running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "tgi_batch_current_size",
        "llamacpp:requests_processing",
    ),
    "n_waiting": (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "tgi_queue_size",
        "llamacpp:requests_deferred",
    ),
    "n_preemptions": ("vllm:num_preemptions_total",),
    "n_cached_tokens": ("vllm:prefix_cache_hits_total",),
}
"""Our name -> what engines call it, newest first. Counts are summed over their labels."""

FRACTIONS = frozenset({"kv_usage_fraction"})
"""Of several series of these the largest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What a server says of itself at one moment; None = it does not say."""

    kv_usage_fraction: float | None = None
    n_running: float | None = None
    n_waiting: float | None = None
    n_preemptions: float | None = None
    n_cached_tokens: float | None = None


def parse_metrics(text: str) -> ServerState | None:
    """Return the state in a page of Prometheus' text format; None if nothing in it is known. Garbage is passed over.

    Examples
    --------
    >>> parse_metrics('vllm:num_requests_waiting{engine="0"} 3.0\\n').n_waiting
    3.0
    """
    series: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.partition("{")[0].partition(" ")[0]
        cells = line.rpartition("}")[2].split() if "{" in line else line.split()[1:]
        try:
            value = float(cells[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            series.setdefault(name, []).append(value)
    found: dict[str, float] = {}
    for ours, theirs in NAMES.items():
        values = next((series[name] for name in theirs if name in series), None)
        if values is not None:
            found[ours] = max(values) if ours in FRACTIONS else sum(values)
    return ServerState(**found) if found else None


async def server_state(client: Client) -> ServerState | None:
    """Return what the server's /metrics say now; None if it has none that is known."""
    answer = await client.fetch("/metrics")
    return parse_metrics(answer.text) if isinstance(answer, Answer) and answer.status == 200 else None


def summary(states: Sequence[ServerState]) -> dict[str, float]:
    """Return the largest gauges seen during a run, and by how much the counters grew."""
    found: dict[str, float] = {}
    for name in NAMES:
        values = [value for state in states if (value := getattr(state, name)) is not None]
        if not values:
            continue
        is_counter = name in {"n_preemptions", "n_cached_tokens"}
        found[name] = max(values[-1] - values[0], 0.0) if is_counter else max(values)
    return found
