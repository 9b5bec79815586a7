"""Measures loads on the real engine, and how far the machine let it: the client's punctuality, the engine's pace."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _engine_cases import CASES, ENGINES
from _engine_model import METRICS, Run, statistic
from _engine_server import CLIENT_CORE, ENGINE_PYTHON, MODEL, EngineError, make_model, ran_s, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _engine_cases import Case
    from _engine_server import Server

CLIENT = Path(__file__).resolve().parent / "_engine_client.py"
LATEST_S = 0.005
"""A client that sends or reads its p99 later than this was overloaded: the run does not count."""
SLOWEST = 1.15
"""Times the best pace seen: an engine that was slower before or after a run was disturbed, and the run is repeated."""
TRIES = 3


class NotMeasuredError(RuntimeError):
    """The machine or the client was too busy for a measurement; the message says which."""


def _busy_s() -> float:
    """Return for how long all cores have been at work since the machine started."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _send(server: Server, requests: list[dict[str, float]]) -> dict[str, Any]:
    """Run the client; return every request's record and how the client fared.

    Raises
    ------
    EngineError: if a request fails or has not as many tokens as were asked for.
    """
    seed = time.time_ns()  # other tokens each time, so that no run finds the last one's prompts in a cache
    job = {"url": server.url, "vocabulary": MODEL["vocab_size"], "seed": seed, "requests": requests}
    ran = subprocess.run(
        [str(ENGINE_PYTHON), str(CLIENT), str(CLIENT_CORE)],
        input=json.dumps(job), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        msg = f"the client failed: {ran.stderr.strip()[-500:]}"
        raise EngineError(msg)
    found: dict[str, Any] = json.loads(ran.stdout)
    for record, request in zip(found["records"], requests, strict=True):
        if "error" in record or len(record["token_s"]) != request["output"]:
            msg = f"a request of {request} failed: {record.get('error', 'it has not as many tokens as asked for')}"
            raise EngineError(msg)
    return found


COUNTERS = {"vllm:num_preemptions_total": "preemptions", "vllm:prefix_cache_hits_total": "cached_tokens"}
"""What the engine itself counts, and what we call it."""


def _counted(server: Server) -> dict[str, int]:
    """Return the engine's own counters since it started."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = dict.fromkeys(COUNTERS.values(), 0)
    for line in lines:
        name = COUNTERS.get(line.partition("{")[0])
        if name:
            found[name] += int(float(line.rpartition(" ")[2]))
    return found


def _requests(case: Case) -> list[dict[str, float]]:
    load = case.load()
    columns = (load.at_s, load.input_tokens, load.output_tokens, load.shared_tokens, load.family)
    names = ("at_s", "input", "output", "shared", "family")
    return [dict(zip(names, values, strict=True)) for values in zip(*(c.tolist() for c in columns), strict=True)]


@dataclass(slots=True)
class Meter:
    """Measures on one server after the other; remembers how fast the engine was when nothing disturbed it."""

    best_pace_s: float = np.inf

    def pace_s(self, server: Server) -> float:
        """Return the time between two tokens of a lone request: how fast the engine is just now."""
        request = {"at_s": 0.0, "input": 64, "output": 64, "shared": 0, "family": 0}
        found = float(np.median(np.diff(_send(server, [request])["records"][0]["token_s"])))
        self.best_pace_s = min(self.best_pace_s, found)
        return found

    def measure(self, case: Case, server: Server) -> Run:
        """Return one valid measurement of a case: the first that nothing disturbed, or the least disturbed one.

        Raises
        ------
        NotMeasuredError: if the client was overloaded every time.
        """
        best: dict[str, Any] | None = None
        before_s = self.pace_s(server)
        for _ in range(TRIES):
            found = self._once(case, server, before_s)
            before_s = found["conditions"]["pace_after_s"]
            conditions = found["conditions"]
            if max(conditions["send_late_p99_s"], conditions["read_late_p99_s"]) > LATEST_S:
                print(f"  {case.name}: discarded, the client was overloaded: {conditions}", flush=True)
                continue
            if best is None or conditions["pace_s"] < best["conditions"]["pace_s"]:
                best = found
            if conditions["pace_s"] <= SLOWEST * self.best_pace_s:
                break
            print(f"  {case.name}: the engine was disturbed: {conditions}", flush=True)
        if best is None:
            msg = f"the client was overloaded in all {TRIES} runs of case {case.name!r}: the machine is too busy"
            raise NotMeasuredError(msg)
        return _run(case, best)

    def _once(self, case: Case, server: Server, before_s: float) -> dict[str, Any]:
        requests = _requests(case)
        before = _counted(server)
        started, busy_s, own_s = time.monotonic(), _busy_s(), ran_s(server.group)
        found = _send(server, requests)
        span_s = time.monotonic() - started
        others_s = _busy_s() - busy_s - (ran_s(server.group) - own_s)
        counted = {name: value - before[name] for name, value in _counted(server).items()}
        after_s = self.pace_s(server)
        late = [record["sent_s"] - request["at_s"] for record, request in zip(found["records"], requests, strict=True)]
        found["conditions"] = {
            "pace_s": round(max(before_s, after_s), 5),
            "pace_after_s": round(after_s, 5),
            "others_cores": round(others_s / span_s - found["cpu_share"], 2),
            "send_late_p99_s": round(float(np.percentile(late, 99)), 5),
            "read_late_p99_s": round(found["lags_s"][0], 5),
            "client_cpu_share": round(found["cpu_share"], 3),
            **counted,
        }
        return found


def _run(case: Case, found: dict[str, Any]) -> Run:
    load = case.load()
    sent_s = np.array([record["sent_s"] for record in found["records"]])
    order = np.argsort(sent_s, kind="stable")
    records = [found["records"][i] for i in order]
    return Run(
        case=case.name,
        sizes=case.sizes,
        purpose=case.purpose,
        engine=case.engine,
        settings=asdict(ENGINES[case.engine]),
        conditions=found["conditions"],
        sent_s=sent_s[order],
        input_tokens=load.input_tokens[order].astype(np.float64),
        output_tokens=load.output_tokens[order].astype(np.float64),
        shared_tokens=load.shared_tokens[order].astype(np.float64),
        family=load.family[order].astype(np.float64),
        ttft_s=np.array([record["token_s"][0] - record["sent_s"] for record in records]),
        e2e_s=np.array([record["token_s"][-1] - record["sent_s"] for record in records]),
    )


def measure_all(chosen: Sequence[Case], scratch: Path) -> Iterator[Run]:
    """Start one server after the other and measure the chosen cases on them."""
    model = scratch / "model"
    make_model(model)
    meter = Meter()
    for engine, cases in groupby(sorted(chosen, key=lambda case: list(ENGINES).index(case.engine)), lambda c: c.engine):
        print(f"starting vLLM ({engine}: {' '.join(ENGINES[engine].arguments())})", flush=True)
        with serving(model, ENGINES[engine], scratch / f"{engine.replace(' ', '_')}.log") as server:
            _send(server, _requests(CASES[0]))  # to warm up
            for case in cases:
                for number in range(case.times):
                    run = meter.measure(case, server)
                    print(f"  {case.name} ({number + 1}): {_brief(run)}", flush=True)
                    yield run


def _brief(run: Run) -> str:
    values = ", ".join(f"{metric} {statistic(run, metric, 'mean') * 1e3:.0f} ms" for metric in METRICS)
    return f"{len(run.sent_s)} requests at {run.rate_rps:.2f}/s, {values}, {run.conditions}"
