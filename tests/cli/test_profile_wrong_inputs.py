"""Wrong inputs of `gpuplan profile ...`: what is wrong, where, and what to do; no traceback, and nothing written."""

from __future__ import annotations

import pytest

from planner.profilers.schema import COLUMNS

LLAMA = ("--model", "meta-llama/Llama-3.1-8B")
ONE = ("--gpu", "H100", "--input", "100", "--output", "100")

# what is asked, exit code, what the message must say
CASES = {
    "an unknown model": (("estimate", "--model", "nope", *ONE), 6, "no model 'nope' in the library"),
    "an unknown GPU": (
        ("estimate", *LLAMA, "--gpu", "H1000", "--input", "1", "--output", "1"),
        6,
        "The GPU 'H1000' is not known (did you mean 'H100-80GB'?).",
    ),
    "a negative length": (
        ("estimate", *LLAMA, "--gpu", "H100", "--input", "-5", "--output", "1"),
        2,
        "lengths of -5 and 1 tokens, which must not be below 0",
    ),
    "no rate": (("estimate", *LLAMA, *ONE, "--rate", "0"), 2, "of a request_rate it must be above 0"),
    "half a request": (("estimate", *LLAMA, *ONE, "--batch", "0.5"), 2, "of a static_batch it must be at least 1"),
    "an unknown precision": (
        ("estimate", *LLAMA, *ONE, "--precision", "bf17"),
        2,
        "'bf17' is not known (known: fp32, bf16",
    ),
    "a profile that is none": (("show", "other.txt"), 2, "has none of a profile's columns. `gpuplan profile import"),
    "an empty profile": (("show", "empty.csv"), 2, "empty.csv: The file is empty"),
    "empty points": (("calibrate", "--with", "empty.csv"), 2, "empty.csv: The file is empty"),
    "weights that fit nowhere": (
        ("startup", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "L4", "--storage-gb-s", "2"),
        2,
        "take 141 GB: 1 x L4 has less. Use more GPUs (--tp)",
    ),
    "another GPU than there is": (
        ("kernels", *LLAMA, "--dry-run", "--gpu", "H1000"),
        6,
        "'H1000' is not known. Did you mean 'H100-80GB'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_told_with_the_way_out(gpuplan, tmp_path, monkeypatch, name):
    asked, code, message = CASES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    (tmp_path / "other.txt").write_text("hello\nworld\n", encoding="utf-8")
    ran = gpuplan("profile", *asked)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert ".." not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("--tp", "3"), "tp 3 does not divide the 32 heads"),
        (("--engine", "vlm"), "nothing was fitted for vlm (did you mean 'vllm'?)"),
    ],
)
def test_what_can_be_estimated_but_hardly_meant_is_noted(gpuplan, options, note):
    ran = gpuplan("profile", "estimate", *LLAMA, *ONE, *options)
    assert ran.code == 0
    assert note in ran.err


def test_a_profile_without_points_says_so(gpuplan, tmp_path):
    (tmp_path / "p.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    ran = gpuplan("profile", "show", tmp_path / "p.csv")
    assert ran.code == 0
    assert "has no points" in ran.err
