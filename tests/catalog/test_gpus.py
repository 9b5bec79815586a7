from __future__ import annotations

import pytest

from planner.catalog.gpus import load_gpus
from planner.errors import DataMissingError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H100-80GB", "H100-80GB"),
        ("h100", "H100-80GB"),
        ("H100-SXM", "H100-80GB"),
        ("nvidia-h100-80gb", "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("H100-PCIe", "H100-PCIe-80GB"),
        ("H100NVL", "H100-NVL-94GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100-80GB-SXM", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("A100-80G-PCIe", "A100-80GB-PCIe"),
        ("A100", "A100-40GB"),
        ("V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("RTX4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("RTXA6000", "RTX-A6000"),
        ("A6000", "RTX-A6000"),
        ("RTX6000-Ada", "RTX-6000-Ada"),
        ("RTXPRO6000", "RTX-PRO-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("GH200", "GH200-96GB"),
        ("B200", "B200-180GB"),
        ("l4", "L4"),
        ("Tesla T4", "T4"),
        ("AMD Instinct MI300X", "MI300X"),
        ("Gaudi-2", "Gaudi2"),
    ],
)
def test_spellings(written, name):
    assert load_gpus().get(written).name == name


def test_a_near_miss_is_suggested():
    with pytest.raises(DataMissingError) as caught:
        load_gpus().get("H200-140GB")
    assert "'H200-140GB'" in str(caught.value)
    assert "H200-141GB" in caught.value.hint
    assert caught.value.exit_code == 6


def test_a_card_without_specification_is_not_taken_for_another():
    for name in ("K80", "A800", "RTX 6000", "RTX-PRO-4500", "A10X", "H20", ""):
        with pytest.raises(DataMissingError):
            load_gpus().get(name)


def test_a_family_stands_for_its_members():
    gpus = load_gpus()
    assert set(gpus.matching("a100")) == {"A100-40GB", "A100-40GB-PCIe", "A100-80GB", "A100-80GB-PCIe"}
    assert gpus.matching("A10") == ("A10",)
    assert gpus.matching("A100-80GB") == ("A100-80GB",)
    assert gpus.matching("H100-SXM") == ("H100-80GB",)


def test_an_assumption_is_told():
    gpus = load_gpus()
    assert "assumed" in gpus.find("A100").note
    assert gpus.find("A100-80GB").note == ""
    assert gpus.find("nothing") is None


def test_idle_power_is_that_of_a_loaded_gpu_where_known():
    assert load_gpus().get("H100-80GB").idle_w == 117
    assert load_gpus().get("A100-80GB").idle_w == 46
    assert load_gpus().get("MI300X").idle_w is None


def test_the_catalog_is_read_once():
    assert load_gpus() is load_gpus()
