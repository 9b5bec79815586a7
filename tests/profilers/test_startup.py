"""How long a replica takes to start: measured loads, limits, and the command."""

from __future__ import annotations

import json

import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.errors import InputError
from planner.profilers.startup import loaders, start_up

GPUS = load_gpus()


def start(model="Llama-3-8B", gpu="A10G", storage_gb_s=1.0486, **more):
    options = {"precision": "bf16", "n_gpus": 1, **more}
    return start_up(load_model(model), GPUS.get(gpu), storage_bytes_per_s=storage_gb_s * 1e9, **options)


@pytest.mark.parametrize(
    ("loader", "storage_gb_s", "measured_s"),
    [("runai-streamer", 1.0486, 14.4), ("tensorizer", 1.0486, 16.4), ("tensorizer", 4.19, 10.4)],
)
def test_measured_loads_of_llama_3_8b(loader, storage_gb_s, measured_s):
    assert start(loader=loader, storage_gb_s=storage_gb_s).weights_s.p50 == pytest.approx(measured_s, rel=0.15)


@pytest.mark.parametrize(("loader", "measured_s"), [("safetensors", 4.95), ("sllm-store", 1.06)])
def test_measured_loads_of_opt_from_local_disks(loader, measured_s):
    found = start("OPT-6.7B", "A5000", 13.4, loader=loader)
    assert found.weights_s.p50 == pytest.approx(measured_s, rel=0.15)


def test_engine_ready_less_weights_is_that_of_vllm():
    found = start(loader="runai-streamer")
    assert found.libraries_s.p50 + found.compile_s.p50 == pytest.approx(19.5, rel=0.1)


@pytest.mark.parametrize("loader", loaders())
def test_faster_storage_never_loads_slower_and_the_p99_is_never_shorter(loader):
    times = [start(loader=loader, storage_gb_s=rate).weights_s for rate in (0.1, 1.0, 10.0, 100.0)]
    assert [time.p50 for time in times] == sorted((time.p50 for time in times), reverse=True)
    assert all(time.p50 <= time.p99 for time in times)


def test_the_total_is_the_sum_of_the_parts():
    found = start(provision_s=60.0, image_bytes=10e9)
    assert found.total_s.p50 == pytest.approx(sum(part.p50 for part in found.parts.values()))
    assert found.provision_s.p50 == 60.0
    assert found.container_s.p50 > start().container_s.p50 + 10
    assert any("the machine runs already" in text for text in start().assumptions)


def test_an_unknown_loader_names_the_known_ones():
    with pytest.raises(InputError, match="tensorize"):
        start(loader="tensorize")


COMMAND = ("profile", "startup", "--model", "Llama-3-8B", "--gpu", "A10G", "--tp", "1")


def test_the_command_prints_the_contracts_document(gpuplan):
    document = json.loads(gpuplan(*COMMAND, "--storage-gb-s", "1", "--json").out)
    assert set(document["total_s"]) == {"p50", "p99"}
    assert set(document["parts"]) == {"provision_s", "container_s", "libraries_s", "weights_s", "compile_s"}
    assert gpuplan(*COMMAND, "--storage-gb-s", "1").code == 0
    assert gpuplan(*COMMAND, "--storage-gb-s", "0").code == 2
    assert gpuplan(*COMMAND, "--storage-gb-s", "1", "--loader", "zip").code == 2
