"""The load on a real engine: sends requests at given times, whatever comes back, and writes when every token came.

Runs in the engine's virtual environment, on a core of its own: _engine_client.py CORE < job.json > result.json. All
times are seconds of the monotonic clock from the moment when time 0 of the job was.

It shares nothing with planner.profilers.endpoint on purpose. The simulator is judged by these figures, so no code of
the product takes part in them (the product's own client is judged by `vllm bench serve`, in endpoint_profiler.py); the
engine's environment has no gpuplan; and prompts that share their heads, and every token by its id, are vLLM's alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from contextlib import suppress

import aiohttp

TICK_S = 0.01
LEAD_S = 0.5
REQUEST_LIMIT_S = 300.0


def prompt(job: dict, number: int) -> list[int]:
    """Return the token ids of a request: random, the first `shared` of them those of its family."""
    request, vocabulary = job["requests"][number], job["vocabulary"]
    family = random.Random(f"{job['seed']}:family:{request['family']}")
    own = random.Random(f"{job['seed']}:{number}")
    shared = [family.randrange(3, vocabulary) for _ in range(request["shared"])]
    return shared + [own.randrange(3, vocabulary) for _ in range(request["input"] - request["shared"])]


async def answer(
    session: aiohttp.ClientSession, url: str, body: bytes, zero: float, at_s: float
) -> dict[str, float | list[float] | str]:
    """Send one request at its time and return its record."""
    await asyncio.sleep(zero + at_s - time.monotonic())
    sent = time.monotonic() - zero
    times: list[float] = []
    n_tokens = 0
    try:
        async with session.post(f"{url}/v1/completions", data=body) as response:
            if response.status != 200:
                return {"sent_s": sent, "error": (await response.text())[:300]}
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.monotonic() - zero
                event = json.loads(line[6:])
                if "error" in event:
                    return {"sent_s": sent, "error": str(event["error"])[:300]}
                new = len(event["choices"][0]["token_ids"]) if event["choices"] else 0
                times += [now] * new
                n_tokens += new
    except (aiohttp.ClientError, TimeoutError) as error:
        return {"sent_s": sent, "error": f"{type(error).__name__}: {error}"}
    return {"sent_s": sent, "token_s": [round(at, 6) for at in times]}


async def watch(lags: list[float]) -> None:
    """Note by how much the loop comes late to a timer, over and over: it reads tokens as late as that."""
    while True:
        due = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        lags.append(time.monotonic() - due)


async def run(job: dict) -> dict:
    """Send all requests of a job and return their records and how the client fared."""
    bodies = [
        json.dumps({
            "model": "dummy",
            "prompt": prompt(job, number),
            "max_tokens": request["output"],
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
        }).encode()
        for number, request in enumerate(job["requests"])
    ]  # fmt: skip
    limit = aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)
    headers = {"Content-Type": "application/json"}
    lags: list[float] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=limit, headers=headers, read_bufsize=2**20
    ) as session:
        gc.collect()
        gc.disable()
        zero = time.monotonic() + LEAD_S
        watching = asyncio.create_task(watch(lags))
        cpu_s = time.process_time()
        calls = [
            answer(session, job["url"], body, zero, request["at_s"])
            for body, request in zip(bodies, job["requests"], strict=True)
        ]
        records = await asyncio.gather(*calls)
        watching.cancel()
    span_s = time.monotonic() - zero + LEAD_S
    return {
        "records": records,
        "lags_s": sorted(lags)[-max(1, len(lags) // 100) :],
        "cpu_share": (time.process_time() - cpu_s) / span_s,
    }


def main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    with suppress(PermissionError):  # a few per cent of a core, but at once: tokens are stamped when they come
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
