"""The GPU catalog: data-sheet and measured facts of every GPU that gpuplan knows, under every name it goes by.

catalogs/gpus.csv holds the facts, gpu_achieved.csv the measured rates, gpu_aliases.csv the other spellings.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.domain.hardware import GpuSpec
from planner.errors import DataMissingError
from planner.files.bundled import bundled
from planner.files.documents import did_you_mean
from planner.units import BytesPerGpu, WattsPerGpu

if TYPE_CHECKING:
    from collections.abc import Mapping

GIGA = 1e9
TERA = 1e12

PEAK_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "bf16": "bf16_dense_tflops",
        "fp8": "fp8_dense_tflops",
        "int8": "int8_dense_tops",
        "fp4": "fp4_dense_tflops",
    }
)
"""Number format -> column of catalogs/gpus.csv, TFLOP/s (TOP/s for int8) without sparsity."""

VENDOR_WORDS = frozenset({"nvidia", "amd", "intel", "tesla", "geforce", "instinct"})
"""Brand names that some tools put before the name; they never tell two GPUs apart."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another spelling of a GPU's name."""

    gpu: str
    note: str = ""
    """What had to be assumed to read the spelling as this GPU; empty = nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCatalog:
    """Every known GPU."""

    specs: tuple[GpuSpec, ...]
    by_name: Mapping[str, GpuSpec]
    aliases: Mapping[str, Alias]
    """Spelling as `spelling` returns it -> the GPU meant."""
    families: Mapping[str, tuple[str, ...]]
    """Spelling of a family's name ("h100") -> the canonical names of its members."""

    def find(self, name: str) -> Alias | None:
        """Return which GPU `name` means and what had to be assumed for that; None if it is not known."""
        return Alias(name) if name in self.by_name else self.aliases.get(spelling(name))

    def get(self, name: str) -> GpuSpec:
        """Return the GPU that `name` means, in any spelling.

        Raises
        ------
        DataMissingError: if no GPU is known by this name.

        Examples
        --------
        >>> load_gpus().get("nvidia-h100-sxm").name
        'H100-80GB'
        """
        found = self.find(name)
        if found is None:
            raise self._unknown(name)
        return self.by_name[found.gpu]

    def matching(self, name: str) -> tuple[str, ...]:
        """Return the canonical names that `name` stands for in a filter: a whole family ("A100"), or one GPU.

        Raises
        ------
        DataMissingError: if no GPU is known by this name.

        Examples
        --------
        >>> load_gpus().matching("V100")
        ('V100-PCIe-16GB', 'V100-16GB', 'V100-32GB')
        """
        if name in self.by_name and len(self.families.get(spelling(name), ())) < 2:
            return (name,)
        return self.families.get(spelling(name)) or (self.get(name).name,)

    def _unknown(self, name: str) -> DataMissingError:
        hint = did_you_mean(name, self.by_name) or "`gpuplan catalog gpus` shows the GPUs that are known."
        return DataMissingError(f"The GPU {name!r} is not known.", hint=hint)


def spelling(name: str) -> str:
    """Return `name` without what never tells two GPUs apart: case, separators and brand names.

    Examples
    --------
    >>> spelling("NVIDIA Tesla V100_SXM2"), spelling("RTX 4090")
    ('v100-sxm2', 'rtx-4090')
    """
    words = re.split(r"[^a-z0-9]+", name.casefold().strip())
    while len(words) > 1 and words[0] in VENDOR_WORDS:
        del words[0]
    return "-".join(word for word in words if word)


@cache
def load_gpus() -> GpuCatalog:
    """Return the bundled GPU catalog; read once per process."""
    rows = _read("gpus.csv")
    achieved: dict[str, dict[str, float]] = defaultdict(dict)
    for row in _read("gpu_achieved.csv"):
        achieved[row["gpu"]][row["number_format"] or row["quantity"]] = float(row["value"])
    specs = tuple(_spec(row, achieved[row["name"]]) for row in rows)
    aliases = {spelling(spec.name): Alias(spec.name) for spec in specs}
    aliases |= {spelling(row["alias"]): Alias(row["gpu"], row["note"]) for row in _read("gpu_aliases.csv")}
    families: dict[str, tuple[str, ...]] = {}
    for row in rows:
        key = spelling(row["family"])
        families[key] = (*families.get(key, ()), row["name"])
    return GpuCatalog(
        specs=specs,
        by_name=MappingProxyType({spec.name: spec for spec in specs}),
        aliases=MappingProxyType(aliases),
        families=MappingProxyType(families),
    )


def _read(name: str) -> list[dict[str, str]]:
    text = bundled("catalogs", name).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _spec(row: Mapping[str, str], achieved: Mapping[str, float]) -> GpuSpec:
    # A server that waits for requests keeps its context and its clocks: that idle power is the one that is paid for.
    idle_w = row["idle_w_clocks_up"] or row["idle_w_low_clock"]
    memory_rate = achieved.get("memory")
    return GpuSpec(
        name=row["name"],
        vendor=row["vendor"],
        architecture=row["architecture"],
        form_factor=row["form_factor"],
        memory_bytes=BytesPerGpu(float(row["memory_bytes"])),
        bandwidth_bytes_per_s=float(row["bandwidth_gb_s"]) * GIGA,
        peak_flops={key: float(row[column]) * TERA for key, column in PEAK_COLUMNS.items() if row[column]},
        achieved_flops={key: rate * TERA for key, rate in achieved.items() if key in PEAK_COLUMNS},
        achieved_bandwidth_bytes_per_s=None if memory_rate is None else memory_rate * GIGA,
        tdp_w=WattsPerGpu(float(row["tdp_w"])),
        idle_w=WattsPerGpu(float(idle_w)) if idle_w else None,
        link=row["link"],
        link_bytes_per_s=float(row["link_gb_s_unidirectional"]) * GIGA,
        pcie_bytes_per_s=float(row["pcie_gb_s_unidirectional"]) * GIGA,
        compute_capability=float(row["compute_capability"]) if row["compute_capability"] else None,
        source=row["source"],
        unverified_fields=tuple(row["unverified_fields"].split()),
        notes=row["notes"],
    )
