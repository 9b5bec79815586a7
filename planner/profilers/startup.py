"""How long a replica takes from nothing to its first token: profiles/startup.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from planner.domain.precision import weight_bytes
from planner.errors import InputError
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import GpuSpec
    from planner.domain.model import ModelArchitecture

GIGA = 1e9

COMPILED_LAYERS = 32.0
"""Layers of the model whose compile time was measured (Llama-3-8B)."""

LOADER_NAMES = {"sllm": "serverlessllm", "sllm-store": "serverlessllm", "runai": "runai-streamer", "": "safetensors"}
"""Other spellings of loaders."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A duration or rate in the median and in the worst one of a hundred starts."""

    p50: float
    p99: float

    def __add__(self, other: Quantiles) -> Quantiles:
        """Add quantile by quantile, which is on the safe side for the p99."""
        return Quantiles(self.p50 + other.p50, self.p99 + other.p99)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """A replica's start, one part after the other, in seconds."""

    provision_s: Quantiles
    container_s: Quantiles
    libraries_s: Quantiles
    weights_s: Quantiles
    compile_s: Quantiles
    assumptions: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Quantiles]:
        """The parts by name, in the order in which they happen."""
        return {
            "provision_s": self.provision_s,
            "container_s": self.container_s,
            "libraries_s": self.libraries_s,
            "weights_s": self.weights_s,
            "compile_s": self.compile_s,
        }

    @property
    def total_s(self) -> Quantiles:
        """All parts together."""
        return sum(self.parts.values(), start=Quantiles(0.0, 0.0))


@cache
def load_startup() -> Mapping[tuple[str, str], Quantiles]:
    """Return the bundled table, (part, scope) -> p50 and p99."""
    text = bundled("profiles", "startup.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(row["part"], row["scope"]): Quantiles(float(row["p50"]), float(row["p99"])) for row in rows}


def loaders() -> tuple[str, ...]:
    """Return the names of the loaders that were measured."""
    return tuple(scope for part, scope in load_startup() if part == "weights_fraction")


def check_loader(loader: str) -> str:
    """Return the name of a loader that was measured.

    Raises
    ------
    InputError: if it is not known.
    """
    name = LOADER_NAMES.get(loader.strip().lower(), loader.strip().lower())
    if ("weights_fraction", name) not in load_startup():
        hint = did_you_mean(name, loaders()) or f"Known: {', '.join(loaders())}."
        raise InputError(f"The loader {loader!r} is not known.", hint=hint)
    return name


def start_up(
    model: ModelArchitecture,
    gpu: GpuSpec,
    *,
    precision: str,
    n_gpus: int,
    storage_bytes_per_s: float,
    loader: str = "safetensors",
    provision_s: float | None = None,
    image_bytes: float = 0.0,
) -> StartUp:
    """Return how long a replica of `model` on `n_gpus` GPUs takes to start.

    Weights: all bytes come from the storage at min(fraction of its rate, the loader's own most); each GPU's part goes
    over its PCIe link meanwhile, which is slower only for very fast storage.

    Raises
    ------
    InputError: if the loader is not known.
    """
    table, name = load_startup(), check_loader(loader)
    size = weight_bytes(model, precision)

    def weights(fraction: float, most_gb_s: float) -> float:
        rate = min(fraction * storage_bytes_per_s, most_gb_s * GIGA)
        return max(size / rate, size / n_gpus / gpu.pcie_bytes_per_s)

    fraction, most = table["weights_fraction", name], table["weights_gb_s", name]
    compiled = table["compile_s", "default"]
    layers = model.n_layers / COMPILED_LAYERS
    asked = Quantiles(provision_s or 0.0, provision_s or 0.0)
    return StartUp(
        provision_s=asked,
        container_s=table["container_s", "warm"] + pull_s(image_bytes),
        libraries_s=table["libraries_s", "default"],
        weights_s=Quantiles(weights(fraction.p50, most.p50), weights(fraction.p99, most.p99)),
        compile_s=Quantiles(compiled.p50 * layers, compiled.p99 * layers),
        assumptions=_assumptions(provision_s, image_bytes),
    )


def pull_s(image_bytes: float) -> Quantiles:
    """Return how long an image of that size takes to be fetched and unpacked."""
    rate = load_startup()["container_gb_s", "pull"]
    return Quantiles(image_bytes / (rate.p50 * GIGA), image_bytes / (rate.p99 * GIGA))


def _assumptions(provision_s: float | None, image_bytes: float) -> tuple[str, ...]:
    said = ["p99 of the libraries and most loaders is assumed; compile time grows with the layers"]
    if provision_s is None:
        said.append("the machine runs already: provisioning takes 0 s unless --provision says otherwise")
    if not image_bytes:
        said.append("the container's image is on the machine unless --image-gb says how large it is")
    return tuple(said)
