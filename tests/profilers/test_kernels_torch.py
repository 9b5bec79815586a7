"""Timing with torch itself: on the processor, and on a GPU where there is one. `make test-kernels` runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-kernels` installs it")

from planner.catalog.gpus import load_gpus  # noqa: E402 - skipped without torch
from planner.errors import DataMissingError  # noqa: E402
from planner.profilers.kernels.document import read_step_times  # noqa: E402
from planner.profilers.kernels.shapes import Kernel, KernelKind  # noqa: E402
from planner.profilers.kernels.timing import open_device  # noqa: E402

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch sees no GPU")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}
SMALL = ("--max-batch", "8", "--max-tokens", "64", "--max-context", "1024", "--device", "cpu")


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cpu():
    timer = open_device("cpu")
    timer.probe()
    return timer


def seconds(timer, limit_s=0.2, **sizes):
    outcome = timer.time(Kernel(role="test", **sizes), limit_s=limit_s)
    assert outcome.skipped == ""
    assert outcome.timing.low_s <= outcome.timing.median_s <= outcome.timing.high_s
    return outcome.timing.median_s


def heads(n_query, n_kv, dim, value_dim=None):
    return {"n_query_heads": n_query, "n_kv_heads": n_kv, "head_dim": dim, "value_head_dim": value_dim or dim}


def test_more_work_takes_longer(cpu):
    product = {"kind": KernelKind.LINEAR, "width_in": 512, "width_out": 512}
    assert seconds(cpu, tokens=512, **product) > 2 * seconds(cpu, tokens=16, **product)
    prefill = {"kind": KernelKind.PREFILL_ATTENTION, **heads(4, 4, 64)}
    assert seconds(cpu, tokens=1024, **prefill) > 4 * seconds(cpu, tokens=256, **prefill)
    decode = {"kind": KernelKind.DECODE_ATTENTION, "batch": 4, **heads(8, 2, 64)}
    assert seconds(cpu, context_tokens=8192, **decode) > 3 * seconds(cpu, context_tokens=1024, **decode)


@pytest.mark.parametrize(
    "sizes",
    [
        {"kind": KernelKind.LAUNCH},
        {"kind": KernelKind.ELEMENTWISE, "tokens": 8, "width_in": 64},
        {"kind": KernelKind.HEAD, "tokens": 2, "width_in": 64, "width_out": 1000},
        {"kind": KernelKind.EXPERTS, "tokens": 3, "step_tokens": 6, "batch": 4, "width_in": 64, "width_out": 128},
        {"kind": KernelKind.LINEAR, "number_format": "fp8", "tokens": 3, "width_in": 64, "width_out": 128},
        {"kind": KernelKind.PREFILL_ATTENTION, "tokens": 64, **heads(4, 4, 192, 128)},
        {"kind": KernelKind.DECODE_ATTENTION, "batch": 2, "context_tokens": 64, **heads(16, 1, 576, 512)},
    ],
    ids=lambda sizes: f"{sizes['kind']}-{sizes.get('number_format', 'bf16')}-{sizes.get('head_dim', 0)}",
)
def test_every_kind_of_kernel_runs(cpu, sizes):
    assert 0 < seconds(cpu, limit_s=0.05, **sizes) < 1


def test_a_shape_that_does_not_fit_the_memory_is_skipped(cpu):
    huge = Kernel(
        kind=KernelKind.DECODE_ATTENTION, role="test", batch=100_000, context_tokens=100_000, **heads(8, 8, 128)
    )
    outcome = cpu.time(huge, limit_s=0.1)
    assert outcome.timing is None
    assert "are free" in outcome.skipped


def test_what_torch_refuses_is_skipped_with_its_words(cpu):
    odd = Kernel(kind=KernelKind.LINEAR, role="test", number_format="fp8", tokens=2, width_in=63, width_out=65)
    outcome = cpu.time(odd, limit_s=0.1)
    assert outcome.timing is not None or "torch refused it" in outcome.skipped


def test_operands_are_rotated_through_more_than_the_cache(cpu):
    kernel = Kernel(kind=KernelKind.LINEAR, role="test", width_in=1024, width_out=1024)
    n_copies = cpu._n_copies(kernel)
    assert n_copies * kernel.cold_bytes >= min(2 * cpu.facts().cache_bytes, 256 * kernel.cold_bytes)
    used = []
    call = cpu._build(kernel, n_copies)

    def watch(at):
        used.append(at)
        call(at)

    from planner.profilers.kernels.timing import _Sampler

    _Sampler(timer=cpu, call=watch, n_copies=n_copies).sample(2 * n_copies)
    assert sorted(used) == sorted([*range(n_copies)] * 2)


def test_all_reduces_run_in_processes_of_their_own(cpu):
    kernels = [
        Kernel(kind=KernelKind.ALL_REDUCE, role="all-reduce", tokens=tokens, batch=2, width_in=1024)
        for tokens in (1, 2048)
    ]
    small, large = cpu.time_all_reduces(kernels, limit_s=1.0)
    assert small.skipped == large.skipped == ""
    assert large.timing.median_s > small.timing.median_s > 0


def test_without_a_gpu_the_command_says_so(gpuplan, tiny):
    if HAS_GPU:
        pytest.skip("there is a GPU")
    with pytest.raises(DataMissingError, match="no GPU"):
        open_device("auto")
    ran = gpuplan("profile", "kernels", "--model", tiny)
    assert ran.code == 6
    assert "--device cpu" in ran.err


def test_a_whole_run_on_the_processor(gpuplan, tiny, tmp_path):
    document = tmp_path / "times.json"
    ran = gpuplan("profile", "kernels", "--model", tiny, *SMALL, "--budget", "20s", "-o", document, "--json")
    assert ran.code == 0, ran.err
    read = read_step_times(document)
    assert read.machine.device == "cpu"
    assert read.machine.gpu is None
    assert read.efficiency == ()
    assert read.machine.torch_version == str(torch.__version__)
    assert all(row.median_s for row in read.kernels), [row.skipped for row in read.kernels if row.skipped]
    assert {step.phase for step in read.steps} == {"decode", "prefill"}
    assert {error.part for error in read.left_out_errors} >= {"layers in bf16", "head", "decode-attention"}
    assert read.rates.attention_flops_per_s > 0


def test_a_processor_is_no_gpu(gpuplan, tiny, tmp_path):
    assert gpuplan("profile", "kernels", "--model", tiny, *SMALL, "--gpu", "H100-80GB").code == 2
    ran = gpuplan("profile", "kernels", "--model", tiny, *SMALL, "-o", tmp_path / "rows.csv")
    assert ran.code == 6
    assert not (tmp_path / "rows.csv").exists()


def test_ctrl_c_keeps_what_was_timed(gpuplan, tiny, tmp_path):
    document, part = tmp_path / "times.json", tmp_path / "times.json.part"
    command = [sys.executable, "-m", "planner.cli.main", "profile", "kernels", "--model", str(tiny), *SMALL]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, "--budget", "5m", "-o", str(document)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 90
    while not part.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert "goes on from there" in err
    n_timed = sum(row.median_s is not None for row in read_step_times(part).kernels)
    assert n_timed > 0
    ran = gpuplan("profile", "kernels", "--model", tiny, *SMALL, "--budget", "10s", "-o", document)
    assert ran.code == 0
    assert f"{n_timed} shapes were timed before" in ran.err
    assert not part.exists()
    assert read_step_times(document).is_complete


@needs_gpu
def test_a_gpu_stays_within_its_data_sheet(gpuplan):
    ran = gpuplan("profile", "kernels", "--model", "Qwen/Qwen2.5-7B", "--budget", "60s", "--json")
    assert ran.code == 0, ran.err
    spec = load_gpus().get(ran.json["machine"]["gpu"])
    rates = ran.json["rates"]
    assert 0.3 < rates["gemm_flops_per_s"]["bf16"] / spec.peak_flops["bf16"] <= 1.02
    assert 0.3 < rates["weight_bytes_per_s"] / spec.bandwidth_bytes_per_s <= 1.02
    assert 0.2 < rates["kv_bytes_per_s"] / spec.bandwidth_bytes_per_s <= 1.02
    assert ran.json["provenance"]["method"] == "CUDA events around CUDA graphs"


@needs_gpu
def test_a_kernel_in_a_graph_is_no_slower_than_its_launches():
    timer = open_device("cuda")
    timer.probe()
    kernel = Kernel(kind=KernelKind.LINEAR, role="test", width_in=4096, width_out=4096)
    graph = timer.time(kernel, limit_s=0.5).timing
    timer.uses_graphs = False
    plain = timer.time(kernel, limit_s=0.5).timing
    assert graph.median_s <= plain.median_s * 1.1
