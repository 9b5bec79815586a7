"""Addresses that are no server with OpenAI's API: told with what was asked, what came, and what to do."""

from __future__ import annotations

import pytest
from profilers.endpoint_server import MODEL, Server, serving
from profilers.other_servers import Page, port_that_says, web_server

SLO = "ttft p99 <= 2s"
NOT_FOUND = Page(404, {"detail": "Not Found"})
NOTHING = Page(404, "", "text/plain")
HTML = Page(404, "<html><h1>404 Not Found</h1></html>", "text/html")
MODELS = Page(body={"object": "list", "data": [{"id": MODEL, "owned_by": "vllm"}]})
HTTP2_SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"


@pytest.fixture
def ask(gpuplan, tmp_path):
    """Run a measurement that ends before it begins."""

    def run(url, *more, **changed):
        options = {
            "--url": url, "--model": MODEL, "--sizes": "8x1", "--slo": SLO, "--gpu": "L4", "--timeout": "2s",
            "-o": str(tmp_path / "p.csv"),
        } | changed  # fmt: skip
        ran = gpuplan("profile", "endpoint", *(word for pair in options.items() for word in pair), *more)
        assert "Traceback" not in ran.err
        assert not (tmp_path / "p.csv").exists()
        journal = tmp_path / "p.csv.journal"
        assert not journal.exists() or journal.read_text(encoding="utf-8").count("\n") == 1  # its head, and no entry
        return ran

    return run


# name -> (pages by path, the page of all other paths, exit code, what the message must say)
WEB = {
    "a web server": (
        {},
        HTML,
        2,
        ("no server with OpenAI's API", "GET /v1/models", "404, a web page '<html>", "--url"),
    ),
    "a page for everything": (
        {},
        Page(body="<!doctype html><html>Hello</html>", kind="text/html"),
        2,
        ("no server with OpenAI's API", "POST /v1/chat/completions: 200, a web page"),
    ),
    "another API": ({}, Page(body={"status": "ok"}), 2, ("no server with OpenAI's API", '200, {"status": "ok"}')),
    "an API without these paths": ({}, NOT_FOUND, 2, ("no server with OpenAI's API", "404, Not Found")),
    "text": ({}, Page(body="pong", kind="text/plain"), 2, ("200, no JSON: 'pong'",)),
    "an old TGI": (
        {"/info": Page(body={"model_id": "m", "router": "text-generation-router", "version": "1.1.0"})},
        NOTHING,
        2,
        ("text-generation-inference (TGI) with its native API only (GET /info)", "404, nothing more", "Update TGI"),
    ),
    "an old Ollama": (
        {"/": Page(body="Ollama is running", kind="text/plain")},
        Page(404, "404 page not found", "text/plain"),
        2,
        ("an Ollama without OpenAI's API (GET /)", "Update Ollama"),
    ),
    "Triton": (
        {"/v2": Page(body={"name": "triton", "version": "2.40.0"})},
        Page(400, "", "text/plain"),
        2,
        ("a Triton Inference Server (GET /v2)", "OpenAI-compatible front end"),
    ),
    "a login form": (
        {},
        Page(body="<form><input type='password'></form>", kind="text/html"),
        2,
        ("a web page with a login", "--api-key-env"),
    ),
    "a redirect to a login": (
        {},
        Page(302, "", "text/html", {"Location": "/login?next=/v1/models"}),
        2,
        ("/v1/models: the server redirects to /login", "That is a login"),
    ),
    "a redirect to https": (
        {},
        Page(301, "", "text/html", {"Location": "https://127.0.0.1:{port}/v1/models"}),
        2,
        ("redirects to https://127.0.0.1", "Write --url https://127.0.0.1:"),
    ),
    "a redirect to nowhere": ({}, Page(302, "", "text/html"), 2, ("redirects to nowhere", "--url")),
    "basic authentication": (
        {},
        Page(401, "", "text/html", {"WWW-Authenticate": 'Basic realm="x"'}),
        2,
        ("401: it asks for a user name and a password",),
    ),
    "a model that is loading": (
        {},
        Page(503, {"error": {"message": "Loading model", "code": 503}}),
        5,
        ("/v1/models: 503, Loading model", "Is it still loading"),
    ),
    "a gateway without its server": ({}, Page(502, "<html>Bad Gateway</html>", "text/html"), 5, ("502, a web page",)),
    "too many requests": ({}, Page(429, {"error": "slow down"}), 5, ("429, slow down", "overloaded")),
    "no model loaded": (
        {"/v1/models": Page(body={"object": "list", "data": []})},
        Page(404, {"error": {"message": f"model '{MODEL}' not found, try pulling it first"}}),
        2,
        ("/v1/completions: 404, model 'tiny' not found", "Check --model; the server lists no models"),
    ),
    "an unknown engine": (
        {"/v1/models": Page(body={"data": [{"id": MODEL, "owned_by": "acme"}]})},
        NOT_FOUND,
        2,
        ("does not say which engine it is", "--engine"),
    ),
    "embeddings": (
        {"/v1/models": MODELS},
        NOT_FOUND,
        2,
        (
            "completes no text with 'tiny'",
            "/v1/completions: the server answers 404",
            "/v1/chat/completions: the server",
        ),
    ),
    "many other models": (
        {"/v1/models": Page(body={"data": [{"id": f"model-{i}"} for i in range(20)] + [{"id": "tinny"}]})},
        NOT_FOUND,
        2,
        ("serves no model 'tiny'", "model-7, ...", "Did you mean 'tinny'"),
    ),
    "a page that finds all bad": (
        {},
        Page(400, "<html>Bad Request</html>", "text/html"),
        2,
        ("no server with OpenAI's API", "400, a web page"),
    ),
}


@pytest.mark.parametrize("name", WEB)
def test_what_is_no_openai_server_is_told_with_what_was_asked_and_what_came(ask, name):
    pages, otherwise, code, messages = WEB[name]
    with web_server(pages, otherwise=otherwise) as asked:
        ran = ask(asked.url)
    assert ran.code == code, ran.err
    for message in messages:
        assert message in ran.err
    assert asked.requests[0] == "GET /v1/models"
    assert asked.url in ran.err


# name -> (what the port says, whether it begins, exit code, what the message must say)
PORTS = {
    "gRPC": (HTTP2_SETTINGS, False, 2, ("speaks HTTP/2 only, as gRPC ports do", "HTTP API as --url")),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", True, 2, ("does not speak HTTP", "SSH-2.0-OpenSSH_9.6")),
    "Redis": (b"-ERR wrong number of arguments for 'get' command\r\n", False, 2, ("does not speak HTTP", "-ERR wrong")),
    "nothing": (b"", False, 5, ("/v1/models: the server closed the connection", "Is --url the address")),
}


@pytest.mark.parametrize("name", PORTS)
def test_a_port_that_speaks_something_else_is_told_by_what_it_says(ask, name):
    data, unasked, code, messages = PORTS[name]
    with port_that_says(data, unasked=unasked) as url:
        ran = ask(url)
    assert ran.code == code, ran.err
    for message in messages:
        assert message in ran.err


def test_tls_asked_in_plain_http_and_the_other_way_round_are_told_with_the_address_to_write(ask):
    with web_server({}, otherwise=NOT_FOUND, tls=True) as asked:
        plain = ask(asked.url.replace("https", "http"))
    assert plain.code == 2
    assert "speaks TLS, and was asked in plain HTTP" in plain.err
    assert f"Write --url {asked.url}." in plain.err
    with web_server({}, otherwise=NOT_FOUND) as asked:
        tls = ask(asked.url.replace("http", "https"))
    assert tls.code == 2
    assert "speaks HTTP without TLS" in tls.err
    assert f"Write --url {asked.url}." in tls.err


def test_an_address_with_a_path_too_many_is_told_where_the_server_is(ask):
    with web_server({"/v1/models": MODELS}, otherwise=NOT_FOUND) as asked:
        ran = ask(f"{asked.url}/api")
    assert ran.code == 2
    assert f"There is one at --url {asked.url}." in ran.err
    with serving(Server()) as server:
        typed = ask(f"{server.url}/v1/chat/completions", **{"--model": "other"})
    assert f"{server.url} serves no model 'other'" in typed.err


def test_a_tgi_that_lists_its_model_is_known_by_its_info_page(ask):
    pages = {
        "/v1/models": Page(body={"data": [{"id": MODEL, "owned_by": MODEL}]}),
        "/info": Page(body={"router": "text-generation-router", "version": "3.3.4"}),
    }
    with web_server(pages, otherwise=NOT_FOUND) as asked:
        ran = ask(asked.url, "--engine", "vllm")
    assert "--engine says vllm, the server says tgi" in ran.err


BAD_OPTIONS = {
    "--slo": ("ttft p99 <= 2", "has no unit"),
    "--sizes": ("8x0", "not a request size"),
    "--gpu": ("L44", "No GPU 'L44' is in the library. Did you mean 'L4'"),
    "-o": ("nowhere/p.csv", "folder does not exist"),
    "--confidence": ("120%", "--confidence must lie between"),
    "--resolution": ("0%", "--resolution must lie between"),
    "--budget": ("45", "--budget: '45' has no unit"),
    "--price": ("-1 USD/h", "--price must not be below zero"),
    "--timeout": ("0s", "--timeout must be more than zero"),
    "--precision": ("bf17", "not a number format"),
    "--engine": ("vlm", "No engine 'vlm' is known. Did you mean 'vllm'"),
    "--ca-file": ("nowhere.pem", "No certificates can be read"),
    "--model": (" ", "--model is empty"),
    "--tp": ("0", "--tp"),
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_options_are_refused_before_a_server_or_a_key_has_to_do_with_it(ask, monkeypatch, option):
    value, message = BAD_OPTIONS[option]
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with web_server({"/v1/models": MODELS}, otherwise=NOT_FOUND) as asked:
        ran = ask(asked.url, "--api-key-env", "MY_KEY", **{option: value})
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert asked.requests == []


def test_sizes_longer_than_any_context_are_refused(ask):
    assert "longer than any model's context" in ask("http://127.0.0.1:9", **{"--sizes": "99999999999x1"}).err


def test_a_key_goes_to_the_server_alone_and_is_warned_of_without_encryption(ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with web_server({}, otherwise=Page(302, "", headers={"Location": "http://127.0.0.1:9/sk-secret"})) as asked:
        ran = ask(asked.url, "--api-key-env", "MY_KEY")
    assert asked.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in ran.err
    assert "without encryption" not in ran.err
    far = ask("http://gpu.invalid:8000", "--api-key-env", "MY_KEY")
    assert "the API key goes to http://gpu.invalid:8000 without encryption" in far.err


def test_a_gpu_of_ones_own_is_measured_under_its_name(ask):
    with web_server({}, otherwise=NOT_FOUND) as asked:
        ran = ask(asked.url, **{"--gpu": "other:My GPU"})
    assert "'My GPU' is no GPU of the library" in ran.err
    assert "no server with OpenAI's API" in ran.err


def test_a_journal_whose_first_line_a_crash_cut_short_is_begun_anew(gpuplan, tmp_path):
    journal = tmp_path / "p.csv.journal"
    journal.write_text('{"kind": "gpuplan endpoint jour', encoding="utf-8")
    with serving(Server()) as server:
        ran = gpuplan(
            "profile", "endpoint", "--url", server.url, "--model", MODEL, "--sizes", "8x1", "--slo", SLO, "--gpu", "L4",
            "-o", tmp_path / "p.csv", "--budget", "1ms",
        )  # fmt: skip
    assert ran.code == 4, ran.err
    assert '"engine": "vllm"' in journal.read_text(encoding="utf-8").splitlines()[0]


def test_a_journal_of_other_settings_is_refused_before_the_server_is_asked(gpuplan, tmp_path):
    head = '{"kind": "gpuplan endpoint journal", "version": 1, "settings": {"url": "http://elsewhere:8000"}}\n'
    journal = tmp_path / "p.csv.journal"
    journal.write_text(head, encoding="utf-8")
    with web_server({"/v1/models": MODELS}, otherwise=NOT_FOUND) as asked:
        ran = gpuplan(
            "profile", "endpoint", "--url", asked.url, "--model", MODEL, "--sizes", "8x1", "--slo", SLO, "--gpu", "L4",
            "-o", tmp_path / "p.csv",
        )  # fmt: skip
    assert ran.code == 2
    assert "url was 'http://elsewhere:8000'" in ran.err
    assert asked.requests == []
    assert journal.read_text(encoding="utf-8") == head
