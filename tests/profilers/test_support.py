"""What engines run on which GPUs: the table as data, and what a plan makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import planner
from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.hardware import EngineConfig
from planner.domain.workload import Bucket
from planner.profilers.efficiency import ENGINES
from planner.profilers.measured import load_measured
from planner.profilers.options import profile_option
from planner.profilers.roofline import MATH_FORMATS
from planner.profilers.support import load_support, unsupported

GPUS = load_gpus()


def reason(gpu, precision, engine="vllm"):
    return unsupported(GPUS.get(gpu), EngineConfig(engine=engine, precision=precision))


def test_the_table_names_known_things_and_its_sources():
    vendors = {
        spec.vendor: {one.architecture for one in GPUS.specs if one.vendor == spec.vendor} for spec in GPUS.specs
    }
    for (engine, vendor, precision), row in load_support().items():
        assert engine in ENGINES
        assert precision in MATH_FORMATS
        assert set(row.architectures) <= vendors[vendor]
        assert (row.least_capability is not None) == (vendor == "NVIDIA")
        assert bool(row.architectures) == (vendor != "NVIDIA")
        assert row.certainty in {"documented", "inferred", "assumed"}
        assert row.source.startswith("https://")
    assert {engine for engine, _, _ in load_support()} == set(ENGINES)


def test_every_nvidia_gpu_has_a_compute_capability():
    for spec in GPUS.specs:
        assert (spec.compute_capability is not None) == (spec.vendor == "NVIDIA"), spec.name
    assert GPUS.get("V100-16GB").compute_capability == 7.0


@pytest.mark.parametrize(
    ("gpu", "precision", "engine", "text"),
    [
        ("V100-16GB", "bf16", "vllm", "vllm runs bf16 from compute capability 8.0 on; V100-16GB has 7.0; it runs fp16"),
        ("V100-16GB", "nvfp4", "vllm", "from compute capability 7.5 on; V100-16GB has 7.0"),
        ("V100-16GB", "fp8", "vllm", "from compute capability 7.5 on"),
        ("T4", "bf16", "vllm", "ask for precision fp16"),
        ("T4", "mxfp4", "vllm", "from compute capability 8.0 on"),
        ("A100-80GB", "fp8", "TRTLLM", "tensorrt-llm runs fp8 from compute capability 8.9 on"),
        ("H100-80GB", "nvfp4", "tensorrt-llm", "from compute capability 10.0 on"),
        ("B200-180GB", "int8", "vllm", "vllm runs int8 below compute capability 10.0 only; B200-180GB has 10.0"),
        ("MI300X", "bf16", "tensorrt-llm", "tensorrt-llm does not run on GPUs of AMD"),
        ("MI300X", "bf16", "lmdeploy-turbomind", "lmdeploy does not run on GPUs of AMD"),
        ("MI300X", "nvfp4", "vllm", "vllm does not run nvfp4 on GPUs of AMD"),
        ("MI250X", "fp8", "vllm", "vllm runs fp8 on CDNA3, CDNA4; MI250X is CDNA2"),
    ],
)
def test_what_does_not_run_is_refused_with_the_reason(gpu, precision, engine, text):
    assert text in reason(gpu, precision, engine)


@pytest.mark.parametrize(
    ("gpu", "precision", "engine"),
    [
        ("V100-16GB", "fp16", "vllm"),
        ("V100-16GB", "int4", "vllm"),
        ("T4", "fp16", "vllm"),
        ("A100-80GB", "fp8", "vllm"),
        ("L4", "fp8", "tensorrt-llm"),
        ("H100-80GB", "nvfp4", "vllm"),
        ("B200-180GB", "nvfp4", "tensorrt-llm"),
        ("MI300X", "fp8", "vllm"),
        ("MI300X", "fp8", "sglang"),
        ("Gaudi2", "bf16", "vllm"),
        ("V100-16GB", "bf16", "inhouse"),
    ],
)
def test_what_runs_is_not_refused(gpu, precision, engine):
    assert reason(gpu, precision, engine) == ""


def test_a_pascal_gpu_runs_nothing_and_is_not_told_to_try_fp16():
    for precision in MATH_FORMATS:
        assert "P100-16GB has 6.0" in reason("P100-16GB", precision)
        assert "ask for" not in reason("P100-16GB", precision)


def test_an_unknown_compute_capability_is_believed():
    gpu = replace(GPUS.get("V100-16GB"), compute_capability=None)
    assert unsupported(gpu, EngineConfig()) == ""


def test_every_measured_point_runs():
    for one in load_measured().points:
        assert reason(one.gpu, one.precision, one.engine) == "", one.where


def test_a_misfit_has_rate_0_and_the_reason():
    buckets = [Bucket(row=0, column=0, rate_rps=1.0, input_tokens=100, output_tokens=100)]
    model, gpu = load_model("Llama-3.1-8B"), GPUS.get("V100-32GB")
    refused = profile_option(model, gpu, EngineConfig(), buckets, (), store=load_measured())
    assert list(refused.throughput_rps) == [0.0]
    assert "ask for precision fp16" in refused.limiting[0]
    served = profile_option(model, gpu, EngineConfig(precision="fp16"), buckets, (), store=load_measured())
    assert served.throughput_rps[0] > 0


def test_no_plan_rents_what_cannot_serve():
    service = {
        "name": "chat",
        "model": "meta-llama/Llama-3.1-8B",
        "workload": {"constant": {"input_tokens": 200, "output_tokens": 50}, "rate": "0.5 req/s"},
        "slo": ["ttft p99 <= 5s"],
    }
    catalog = {"providers": ["gcp"], "gpus": {"include": ["V100", "P100", "T4", "L4"]}}
    request = {"schema_version": "1", "kind": "PlanRequest", "services": [service], "catalog": catalog}
    for precision, used in (("bf16", {"L4"}), ("fp16", {"V100-16GB", "T4", "L4"})):
        plan = planner.plan({**request, "services": [{**service, "precision": precision}]}).plan
        assert {allocation.gpu for allocation in plan.allocation} <= used
    only_old = {**request, "catalog": {"gpus": {"include": ["V100", "P100"]}}}
    plan = planner.plan({**only_old, "services": [{**service, "precision": "bf16"}]}).plan
    assert plan.status == "infeasible"
    assert any("compute capability 8.0" in conflict.explanation for conflict in plan.conflicts), plan.conflicts
