"""Fits how requests spread over users of adapters, and in time, to a trace; writes profiles/lora/popularity.csv.

Run: .venv/bin/python benchmarks/fit_adapter_traffic.py LORA_REQUEST_TRACE.csv [--no-write]

The trace is lora_request_trace.csv of alibaba/clusterdata, cluster-trace-v2026-GenAI. It has no licence of its own, so
none of it ships with gpuplan; what is fitted here does. It names no adapters: users who ask for some stand for them.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from planner.domain.distributions import HyperExponential, Weibull
from planner.workload.popularity import Popularity

TARGET = Path(__file__).resolve().parents[1] / "profiles" / "lora" / "popularity.csv"
SOURCE = "fit to alibaba/clusterdata@7a6c496e4f4b, cluster-trace-v2026-GenAI/lora_request_trace.csv (SoCC 2025)"
LEAST_REQUESTS = 20
"""Users with fewer say nothing of how their gaps vary."""
SEED = 20241115
COLUMNS = ("gmt_create", "groupId", "num_lora")


def requests(path: Path) -> pd.DataFrame:
    """Return the requests: second of creation, user, and number of adapters."""
    table = pd.read_csv(path, usecols=list(COLUMNS))
    seconds = pd.to_datetime(table["gmt_create"]).astype("datetime64[s]").astype("int64")
    return pd.DataFrame({"second": seconds, "user": table["groupId"], "n_adapters": table["num_lora"]})


def relative_gaps(table: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Return the gaps of every busy user over that user's mean gap, and the number of such users.

    Times are whole seconds; each request is put at random within its second.
    """
    rng = np.random.default_rng(SEED)
    parts = []
    for _, own in table.groupby("user"):
        if len(own) >= LEAST_REQUESTS:
            gaps = np.diff(np.sort(own["second"].to_numpy() + rng.random(len(own))))
            parts.append(gaps / gaps.mean())
    return np.concatenate(parts), len(parts)


def log_likelihood(gaps: np.ndarray, found: HyperExponential | Weibull) -> float:
    """Return the mean log-likelihood of a gap."""
    if isinstance(found, Weibull):
        x = gaps / found.scale_s
        density = found.shape / found.scale_s * x ** (found.shape - 1) * np.exp(-(x**found.shape))
    else:
        w, short, long = found.short_fraction, found.short_mean_s, found.long_mean_s
        density = w / short * np.exp(-gaps / short) + (1 - w) / long * np.exp(-gaps / long)
    return float(np.log(density).mean())


def rows(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return parameter, value, unit and note of everything that is fitted."""
    asked = table[table["n_adapters"] > 0]
    counts = np.sort(asked["user"].value_counts().to_numpy())[::-1]
    shifted, plain = Popularity.fitted(counts), Popularity.fitted(counts, is_shifted=False)
    n_head = max(1, len(counts) // 10)
    head, first = counts[:n_head].sum() / counts.sum(), counts[0] / counts.sum()
    model_head = [found.shares(len(counts))[:n_head].sum() for found in (shifted, plain)]
    gaps, n_users = relative_gaps(asked)
    sessions, weibull = HyperExponential.fitted(gaps), Weibull.fitted(gaps)
    days = (table["second"].max() - table["second"].min()) / 86400
    basis = f"{len(asked):,} requests with an adapter by {len(counts)} users in {days:.0f} days"
    busy = f"{len(gaps):,} gaps of the {n_users} users with at least {LEAST_REQUESTS} requests, over each user's mean"
    likelihood = (
        f"mean log-likelihood {log_likelihood(gaps, sessions):.3f}; Weibull {log_likelihood(gaps, weibull):.3f}"
    )
    head_note = f"the busiest tenth has {head:.1%}, by this law {model_head[0]:.1%}"
    cv_note = f"of the gaps themselves; of the fit {sessions.sd_s / sessions.mean_s:.3f}"
    return [
        ("exponent", f"{shifted.exponent:.4f}", "1", f"law 1 / (rank + shift)^exponent; {basis}"),
        ("shift", f"{shifted.shift:.4f}", "ranks", head_note),
        ("exponent_without_shift", f"{plain.exponent:.4f}", "1", f"Zipf's law; by it {model_head[1]:.1%}"),
        ("first_share", f"{first:.4f}", "fraction", "requests of the busiest user"),
        ("busiest_tenth_share", f"{head:.4f}", "fraction", "requests of the busiest tenth of users"),
        ("short_gap_fraction", f"{sessions.short_fraction:.4f}", "fraction", f"{busy}; {likelihood}"),
        ("short_gap_mean", f"{sessions.short_mean_s:.5f}", "mean gaps", "gaps within a session"),
        ("long_gap_mean", f"{sessions.long_mean_s:.4f}", "mean gaps", "gaps between sessions"),
        ("gap_cv", f"{gaps.std():.3f}", "1", cv_note),
        ("weibull_shape", f"{weibull.shape:.4f}", "1", "for the closed form of keep-alive times"),
        ("request_share", f"{len(asked) / len(table):.4f}", "fraction", f"of {len(table):,} requests ask for adapters"),
        ("adapters_per_request", f"{asked['n_adapters'].mean():.4f}", "1", "where any is asked for"),
        ("mean_rate_rps", f"{len(asked) / (days * 86400):.6f}", "req/s", "all users together"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="lora_request_trace.csv")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("parameter", "value", "unit", "source", "note"))
    writer.writerows((name, value, unit, SOURCE, note) for name, value, unit, note in rows(requests(options.trace)))
    print(stream.getvalue())
    if not options.no_write:
        TARGET.write_text(stream.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
