"""The endpoint profiler against real servers: one that queues by a known law, and many that are broken."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from profilers.endpoint_server import MODEL, TLS, Law, Server, serving
from profilers.queue_replay import share_beyond

from planner.domain.slo import Metric
from planner.errors import InputError, MeasurementError
from planner.files.slo import parse_slo
from planner.profilers.endpoint.client import Client, Connection
from planner.profilers.endpoint.dialect import Prompts, fit_length, learn
from planner.profilers.endpoint.identify import identify
from planner.profilers.endpoint.journal import Journal
from planner.profilers.endpoint.load import patience, run_load
from planner.profilers.endpoint.records import FailureKind, Request
from planner.profilers.endpoint.schedule import Size
from planner.profilers.endpoint.search import Verdict
from planner.profilers.endpoint.session import Session, Settings
from planner.profilers.endpoint.verdict import Monitor
from planner.profilers.schema import read_profile_file

SERVICE_S = 0.008
SLO = "ttft p50 <= 0.05s"
LIMIT_RPS = 117.0
"""At which half of the sojourns in this M/D/1 queue are longer than the bound; a test checks it."""
SIZE = Size(32, 2)


def start_server():
    script = Path(__file__).with_name("endpoint_server.py")
    process = subprocess.Popen([sys.executable, script, "0", str(SERVICE_S)], stdout=subprocess.PIPE, text=True)
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"


@pytest.fixture(scope="module")
def queue_url():
    """An M/D/1 queue in a process of its own."""
    process, url = start_server()
    yield url
    process.kill()
    process.wait()
    process.stdout.close()


def arguments(url, *more, sizes="32x1", slo=SLO, resolution="60%"):
    command = ["profile", "endpoint", "--url", url, "--model", MODEL, "--sizes", sizes, "--slo", slo, "--gpu", "L4"]
    return [*command, "--resolution", resolution, *more]


# --- a server that works ---------------------------------------------------------------------------------------------


RESOLUTION = "30%"


def run_gpuplan(*command):
    """Run a measurement to its end; on a machine too busy for it, it refuses, and goes on where it was when asked."""
    line = [sys.executable, "-m", "planner.cli.main", *map(str, command)]
    for _ in range(8):
        ran = subprocess.run(line, capture_output=True, text=True, check=False)
        if ran.returncode != 5 or "this client is too slow" not in ran.stderr:
            break
    return ran


@pytest.fixture(scope="module")
def finished(queue_url, tmp_path_factory):
    """A finished measurement: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    more = ("-o", folder / "p.csv", "--json", "--price", "3600 USD/h")
    ran = run_gpuplan(*arguments(queue_url, *more, resolution=RESOLUTION))
    assert ran.returncode == 0, ran.stderr
    return folder, json.loads(ran.stdout)


def test_the_capacity_of_a_queue_is_found(finished):
    assert share_beyond(LIMIT_RPS, 0.05, lambda _: SERVICE_S) == pytest.approx(0.5, abs=0.1)
    folder, document = finished
    (size,) = document["sizes"]
    assert size["closed"]
    assert size["rate_rps"] <= 1.1 * LIMIT_RPS
    assert size["fails_rps"] >= 0.9 * LIMIT_RPS
    assert size["rate_rps"] < size["fails_rps"] <= 1.3 * size["rate_rps"]
    assert document["cost_usd"] == pytest.approx(document["spent_s"])
    best, *others = read_profile_file(folder / "p.csv")
    assert (best.load_kind, best.slo) == ("poisson_max_under_slo", SLO)
    assert best.rate_rps == pytest.approx(size["rate_rps"], rel=1e-6)
    assert (best.engine, best.engine_version, best.gpu, best.size, best.length_dist) == (
        "vllm", "0.32.0", "L4", "32x1", "fixed",
    )  # fmt: skip
    assert best.ttft_s["median"] <= 0.05
    assert best.tool == "gpuplan"
    assert "95% confidence" in best.notes
    assert all(one.load_kind == "request_rate" and one.rate_rps < best.rate_rps for one in others)


def test_a_finished_measurement_is_not_measured_again_nor_is_what_is_not_its_own_overwritten(
    gpuplan, finished, queue_url, tmp_path
):
    folder, document = finished
    target = tmp_path / "p.csv"
    for name in ("p.csv", "p.csv.journal"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    again = gpuplan(*arguments(queue_url, "-o", target, "--json", resolution=RESOLUTION))
    assert again.code == 0
    assert again.json["sizes"] == document["sizes"]
    assert "Going on with p.csv.journal" in again.err
    other = gpuplan(*arguments(queue_url, "-o", target, slo="ttft p50 <= 40ms", resolution=RESOLUTION))
    assert other.code == 2
    assert "journal is of other settings: slos was ['ttft p50 <= 0.05s'] and is ['ttft p50 <= 0.04s']" in other.err
    target.write_text("mine", encoding="utf-8")
    assert gpuplan(*arguments(queue_url, "-o", target, resolution=RESOLUTION)).code == 2
    assert gpuplan(*arguments(queue_url, "-o", target, "--restart", resolution=RESOLUTION)).code == 2
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_budget_ends_between_runs_and_what_is_left_is_told(gpuplan, queue_url, tmp_path):
    ran = gpuplan(*arguments(queue_url, "-o", tmp_path / "p.csv", "--budget", "1s", "--json", sizes="32x1,64x1"))
    assert ran.code == 4
    assert ran.json["unmeasured"] == ["32x1", "64x1"]
    assert ran.err.count("the budget ended") == 1
    assert not (tmp_path / "p.csv").exists()
    more = gpuplan(*arguments(queue_url, "-o", tmp_path / "p.csv", "--budget", "5s", "--json", sizes="32x1,64x1"))
    assert [one["runs"] > 0 for one in more.json["sizes"]] == [True]


@pytest.mark.parametrize(
    ("sizes", "n_kills", "longest_s"),
    [("32x1", 1, 3.0), pytest.param("32x1,64x1", 6, 8.0, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments_it_goes_on_and_loses_nothing_that_was_finished(
    queue_url, tmp_path, sizes, n_kills, longest_s
):
    command = arguments(queue_url, "-o", tmp_path / "p.csv", sizes=sizes, resolution="99%")
    journal = tmp_path / "p.csv.journal"
    rng = random.Random(4)
    before = b""
    for _ in range(n_kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "planner.cli.main", *map(str, command)],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(0.8, longest_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = journal.read_bytes() if journal.exists() else b""
        assert now.startswith(before[: before.rfind(b"\n") + 1])
        before = now
    whole = before[: before.rfind(b"\n") + 1]
    with journal.open("ab") as stream:
        stream.write(b'{"kind": "run", "subject": "32')  # as a crash in the middle of a line leaves it
    ran = run_gpuplan(*command)
    assert ran.returncode == 0, ran.stderr
    assert journal.read_bytes().startswith(whole)
    rows = read_profile_file(tmp_path / "p.csv")
    assert [one.size for one in rows if one.load_kind == "poisson_max_under_slo"] == sizes.split(",")
    mixes = [one.notes for one in rows if one.length_dist.startswith("mix of 32x1")]
    assert len(mixes) == sizes.count(",")
    assert all("load fractions sum to" in notes for notes in mixes)


def test_ctrl_c_keeps_what_was_measured(queue_url, tmp_path):
    command = [sys.executable, "-m", "planner.cli.main", *arguments(queue_url, "-o", str(tmp_path / "p.csv"))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs behind them ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not (tmp_path / "p.csv.journal").exists() or b'"run"' not in (tmp_path / "p.csv.journal").read_bytes():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err


# --- servers that are broken -----------------------------------------------------------------------------------------

BROKEN = {
    "drops the connection": (5, "closed the connection before the answer was complete"),
    "hangs up": (5, "closed the connection before the answer was complete"),
    "500": (5, "answers 500: Internal Server Error"),
    "hangs": (5, "no complete answer within 0.5 s"),
    "garbage": (5, "no server-sent event"),
    "truncated json": (5, "an event of the stream is no JSON"),
    "invalid utf-8": (5, "an event of the stream is no JSON"),
    "huge chunk": (5, "longer than 1,048,576 bytes"),
    "other form": (5, "of another form than OpenAI's"),
    "error event": (5, "reports an error within the stream: CUDA out of memory"),
    "404 model": (2, "answers 404: The model tiny does not exist"),
    "redirect": (2, "redirects to http://elsewhere.example"),
    "429": (5, "answers 429: slow down"),
    "slow headers": (5, "a lone request takes 0.3"),
    "no streaming": (5, "answers in one piece where a stream was asked for"),
    "wrong content type": (5, "a web page comes where a stream was asked for: '<html>"),
    "empty stream": (5, "ended without a token"),
    "no http": (5, ""),
    "wrong output count": (5, "counts 1 tokens where"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_servers_are_told_of_in_a_sentence(gpuplan, tmp_path, fault):
    code, message = BROKEN[fault]
    with serving(Server(fault=fault, law=Law(mean_s=0.001))) as server:
        ran = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv", "--timeout", "500ms", sizes="32x5"))
    assert ran.code == code, ran.err
    assert message in ran.err + ran.out
    assert "Traceback" not in ran.err
    assert not (tmp_path / "p.csv").exists()


def test_a_size_beyond_the_context_is_told_of_and_the_others_are_measured(gpuplan, tmp_path):
    with serving(Server(law=Law(first_s=0.3, mean_s=0.0), context=100)) as server:
        ran = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv", "--json", sizes="8x1,8x200"))
    assert ran.code == 5, ran.err
    refused = {one["output_tokens"]: one["reason"] for one in ran.json["sizes"]}
    assert "maximum context is 100 tokens" in refused[200]
    assert "a lone request takes 0.3" in refused[1]


def test_a_key_is_asked_for_and_never_shown(gpuplan, tmp_path, monkeypatch):
    with serving(Server(key="right-secret")) as server:
        without = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv"))
        monkeypatch.setenv("MY_KEY", "wrong-secret")
        wrong = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv", "--api-key-env", "MY_KEY"))
        monkeypatch.setenv("MY_KEY", "right-secret")
        right = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv", "--api-key-env", "MY_KEY", "--budget", "1ms"))
    assert without.code == wrong.code == 2
    assert "--api-key-env" in without.err
    assert right.code == 4, right.err
    told = wrong.err + right.err + wrong.out + right.out + (tmp_path / "p.csv.journal").read_text(encoding="utf-8")
    assert "secret" not in told
    assert gpuplan(*arguments("http://127.0.0.1:9", "-o", tmp_path / "p.csv", "--api-key-env", "NO_SUCH")).code == 2


def test_self_signed_certificates_are_refused_unless_trusted(gpuplan, tmp_path):
    with serving(Server(), tls=True) as server:
        refused = gpuplan(*arguments(server.url, "-o", tmp_path / "p.csv"))
        trusted = gpuplan(
            *arguments(server.url, "-o", tmp_path / "p.csv", "--ca-file", TLS / "certificate.pem", "--budget", "1ms")
        )
    assert refused.code == 2
    assert "no trusted TLS connection" in refused.err
    assert "--ca-file" in refused.err
    assert trusted.code == 4, trusted.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--url": "http://127.0.0.1:9"}, "cannot connect"),
        ({"--url": "ftp://x"}, "not a server's address"),
        ({"--url": "http://me:secret@127.0.0.1"}, "holds a user name or password"),
        ({"--model": "other"}, "serves no model 'other'. It serves: tiny."),
        ({"--slo": "quick"}, "not a service-level objective"),
        ({"--sizes": "12"}, "not a request size"),
        ({"-o": "p.json"}, "A profile is a .csv file"),
        ({"--confidence": "40%"}, "between 50% and 100%"),
        ({"--precision": "bf17"}, "not a number format"),
        ({"--budget": "5"}, "has no unit"),
        ({"--ca-file": "nowhere.pem"}, "No certificates can be read"),
        ({"--trace": "t.csv"}, "either --sizes or --trace"),
    ],
)
def test_wrong_options(gpuplan, tmp_path, changes, message):
    with serving(Server()) as server:
        options = {
            "--url": server.url, "--model": MODEL, "--sizes": "8x1", "--slo": SLO, "--gpu": "L4",
            "-o": str(tmp_path / "p.csv"),
        } | changes  # fmt: skip
        ran = gpuplan("profile", "endpoint", *(word for pair in options.items() for word in pair))
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert "secret" not in ran.err
    assert not (tmp_path / "p.csv.journal").exists()


def test_a_server_that_dies_ends_the_measurement_with_what_was_measured_kept(finished, queue_url, tmp_path):
    """One size is done; the server dies while the other is measured."""
    process, url = start_server()
    journal = tmp_path / "p.csv.journal"
    known = (finished[0] / journal.name).read_text(encoding="utf-8").replace(queue_url, url)
    journal.write_text(known, encoding="utf-8")
    command = arguments(url, "-o", tmp_path / "p.csv", "--no-mix", sizes="32x1,64x1", resolution=RESOLUTION)
    started = subprocess.Popen(
        [sys.executable, "-m", "planner.cli.main", *map(str, command)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while b'"subject": "64x1"' not in journal.read_bytes():
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.1)
    time.sleep(0.5)
    process.kill()
    process.wait()
    process.stdout.close()
    _, err = started.communicate(timeout=30)
    assert started.returncode == 5, err
    assert "has stopped answering" in err
    assert "Wrote" in err
    rows = read_profile_file(tmp_path / "p.csv")
    assert [one.size for one in rows if one.load_kind == "poisson_max_under_slo"] == ["32x1"]
    assert journal.read_text(encoding="utf-8").startswith(known)


def test_rates_at_which_the_server_turns_requests_away_fail():
    """503 beyond four requests at a time: no wait is long, but far too many are turned away at twice the capacity."""

    async def run(client):
        dialect = await learn(client, MODEL, Size(32, 1))
        slos = (parse_slo("ttft p90 <= 1s"),)
        return await run_load(
            client,
            dialect,
            Prompts(dialect, np.random.default_rng(1)),
            rate_rps=100.0,
            shares={Size(32, 1): 1.0},
            monitor=Monitor(slos, confidence=0.95, lone_s={Metric.TTFT: 0.02}, rate_rps=100.0),
            patience=patience(slos, 1),
            longest_s=20.0,
            rng=np.random.default_rng(2),
        )

    found = asked(Server(law=Law(first_s=0.02, mean_s=0.0), overload_beyond=4, metrics="\x00 garbage {inside}"), run)
    assert found.judgement.verdict is Verdict.FAILS
    assert found.failures["overload"] > 0.2 * len(found.judged)
    assert not found.is_dead
    assert found.states == ()


# --- how it speaks ---------------------------------------------------------------------------------------------------


class Silent:
    def __init__(self, block_s=0.0):
        self.notes = []
        self.block_s = block_s

    def part(self, subject, n_done, n_parts):
        pass

    def run(self, rate_rps, n_fewest, n_judged):
        time.sleep(self.block_s)

    def note(self, message):
        self.notes.append(message)


def measured(server, folder, *, slos=(SLO,), watcher=None, resolution=0.6):
    settings = Settings(
        connection=Connection(url=server.url, timeout_s=5.0),
        model=MODEL,
        sizes=(Size(32, 1),),
        weights=None,
        slos=tuple(map(parse_slo, slos)),
        confidence=0.95,
        resolution=resolution,
        seed=0,
    )
    with Journal.open(folder / "journal", settings.fingerprint(), restart=False) as journal:
        asyncio.run(Session(settings=settings, journal=journal, watcher=watcher or Silent()).measure())
        return journal.entries


def test_a_client_that_cannot_keep_up_refuses_to_measure(tmp_path):
    """The loop is blocked for 60 ms five times a second: tokens would be stamped that much too late."""
    with serving(Server(law=Law(mean_s=0.002))) as server, pytest.raises(MeasurementError, match="client is too slow"):
        measured(server, tmp_path, slos=("ttft p99 <= 1s",), watcher=Silent(block_s=0.06))
    assert '"kind": "run"' not in (tmp_path / "journal").read_text(encoding="utf-8")


def asked(server, what):
    """Run `what(client)` with a client of the server."""

    async def run():
        async with Client(Connection(url=server.url, timeout_s=5.0)) as client:
            return await what(client)

    with serving(server):
        return asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "path", "has_ids", "extras"),
    [
        ({}, "/v1/completions", True, {"stream_options", "ignore_eos", "min_tokens", "temperature"}),
        ({"takes_ids": False}, "/v1/completions", False, {"stream_options", "ignore_eos", "min_tokens", "temperature"}),
        (
            {"has_tokenizer": False},
            "/v1/completions",
            False,
            {"stream_options", "ignore_eos", "min_tokens", "temperature"},
        ),
        ({"refused": ("ignore_eos", "min_tokens")}, "/v1/completions", True, {"stream_options", "temperature"}),
        ({"refused": ("stream_options",)}, "/v1/completions", True, {"ignore_eos", "min_tokens", "temperature"}),
        (
            {"has_completions": False},
            "/v1/chat/completions",
            False,
            {"stream_options", "ignore_eos", "min_tokens", "temperature"},
        ),
    ],
)
def test_what_a_server_refuses_is_left_out_and_told(changes, path, has_ids, extras):
    async def learned(client):
        return await learn(client, MODEL, SIZE)

    server = Server(law=Law(mean_s=0.001), **changes)
    dialect = asked(server, learned)
    assert (dialect.path, bool(dialect.token_ids), set(dialect.extras)) == (path, has_ids, extras)
    for name in changes.get("refused", ()):
        assert any(name in note for note in dialect.notes)


def test_prompts_have_exactly_the_asked_length_by_the_servers_count():
    async def sent(client):
        dialect = await learn(client, MODEL, SIZE)
        prompts = Prompts(dialect, np.random.default_rng(1))
        counted = await fit_length(client, dialect, prompts, Size(100, 2))
        return counted, prompts.prompt(100)

    by_ids, ids = asked(Server(law=Law(mean_s=0.001)), sent)
    assert by_ids == len(ids) == 100
    template = Server(law=Law(mean_s=0.001), takes_ids=False, prompt_offset=7)  # as a chat template adds
    by_words, text = asked(template, sent)
    assert by_words == 100
    assert len(text.split()) == 93
    with pytest.raises(MeasurementError, match="counts 70 tokens in a prompt of 100 token ids"):
        asked(Server(law=Law(mean_s=0.001), prompt_offset=-30), sent)


def test_tokens_are_stamped_when_they_come():
    async def sent(client):
        dialect = await learn(client, MODEL, SIZE)
        request = Request(size=Size(10, 6), due_s=time.monotonic())
        await client.send(dialect.path, dialect.body([5] * 10, 6), request)
        return request

    law = Law(first_s=0.05, mean_s=0.0, token_s=0.02)
    request = asked(Server(law=law), sent)
    assert request.failure is None
    assert (request.prompt_tokens, request.output_tokens, request.chunks) == (10, 6, 6)
    assert request.ttft_s == pytest.approx(0.05, abs=0.02)
    assert request.tpot_s == pytest.approx(0.02, abs=0.005)
    assert request.e2e_s == pytest.approx(0.15, abs=0.03)
    assert asked(Server(law=law, fault="done twice"), sent).failure is None


def test_cut_off_streams_are_not_taken_for_whole_ones():
    async def sent(client):
        request = Request(size=SIZE, due_s=time.monotonic())
        await client.send("/v1/completions", json.dumps({"prompt": "a b", "max_tokens": 3}).encode(), request)
        return request

    request = asked(Server(law=Law(mean_s=0.001), fault="drops the connection"), sent)
    assert request.failure.kind in {FailureKind.DROPPED, FailureKind.PROTOCOL}
    assert request.e2e_s is None


def test_the_engine_is_what_the_server_says():
    with serving(Server()) as server:
        found = asyncio.run(identify(Connection(url=server.url, timeout_s=5.0), MODEL))
    assert (found.engine, found.version) == ("vllm", "0.32.0")


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_journal_in_use_is_refused_and_a_damaged_one_told_of(tmp_path):
    path = tmp_path / "j"
    with Journal.open(path, {"url": "x"}, restart=False), pytest.raises(InputError, match="Another measurement"):
        Journal.open(path, {"url": "x"}, restart=False)
    path.write_text(path.read_text(encoding="utf-8") + '{"kind": "run", "oops": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"j:2: The journal is damaged"):
        Journal.open(path, {"url": "x"}, restart=False)
    with Journal.open(path, {"url": "y"}, restart=True) as journal:
        assert journal.entries == []
    path.write_text("not mine\n", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        Journal.open(path, {}, restart=False)
    assert path.stat().st_size == 9
