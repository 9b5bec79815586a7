"""The state of the GPU while it is timed: whose it is, how fast its clocks run, and what holds them back.

Read from nvidia-smi where there is one; None everywhere = not known.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MIB = 2.0**20

QUERY = (
    "name",
    "driver_version",
    "memory.used",
    "utilization.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
)
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""What newer and older drivers call the bit mask of reasons for lower clocks."""

REASONS: Mapping[int, str] = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "temperature (software limit)",
    0x40: "temperature (hardware limit)",
    0x80: "power brake",
}
"""Bits of NVML's clocks-event-reasons mask that slow a busy GPU down; the others say that it is idle or was set so."""

NORMAL_UNDER_LOAD = 0x4
"""A GPU that multiplies large matrices runs into its power limit: told, but no fault."""

BUSY_MEMORY_BYTES = 1e9
"""More memory than drivers and idle desktops take: somebody else uses the GPU."""

BUSY_UTILISATION_FRACTION = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What nvidia-smi says of one GPU at one moment."""

    driver_version: str | None = None
    memory_used_bytes: float | None = None
    utilisation_fraction: float | None = None
    """Part of the last second or so in which any kernel ran."""
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    slowdown_mask: int = 0

    @property
    def slowdowns(self) -> tuple[str, ...]:
        """What held the clocks down, in words."""
        return tuple(name for bit, name in REASONS.items() if self.slowdown_mask & bit)

    @property
    def is_throttled(self) -> bool:
        """Whether clocks were held down by something other than the power limit."""
        return any(self.slowdown_mask & bit for bit in REASONS if bit != NORMAL_UNDER_LOAD)


def busy_reason(state: MachineState) -> str:
    """Return in words why somebody else seems to use the GPU; "" if nobody does, or it is not known.

    Examples
    --------
    >>> busy_reason(MachineState(memory_used_bytes=40e9, utilisation_fraction=0.0))
    '40.0 GB of its memory are in use'
    """
    if state.memory_used_bytes is not None and state.memory_used_bytes > BUSY_MEMORY_BYTES:
        return f"{state.memory_used_bytes / 1e9:.1f} GB of its memory are in use"
    if state.utilisation_fraction is not None and state.utilisation_fraction > BUSY_UTILISATION_FRACTION:
        return f"it is busy {state.utilisation_fraction:.0%} of the time"
    return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", "[Not Supported]"
        return None


def parse_state(fields: Sequence[str], line: str) -> MachineState:
    """Return the state that one line of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` holds.

    Examples
    --------
    >>> parse_state(("driver_version", "clocks.sm", "clocks_event_reasons.active"), "550.90, 1980, 0x40").slowdowns
    ('temperature (hardware limit)',)
    """
    cells = next(csv.reader([line], skipinitialspace=True), [])
    row = dict(zip(fields, (cell.strip() for cell in cells), strict=False))
    numbers = {name: _number(text) for name, text in row.items()}
    used, utilisation = numbers.get("memory.used"), numbers.get("utilization.gpu")
    mask = next((row[name] for name in REASON_FIELDS if row.get(name, "").startswith("0x")), "0x0")
    return MachineState(
        driver_version=row.get("driver_version") or None,
        memory_used_bytes=None if used is None else used * MIB,
        utilisation_fraction=None if utilisation is None else utilisation / 100.0,
        sm_clock_mhz=numbers.get("clocks.sm"),
        max_sm_clock_mhz=numbers.get("clocks.max.sm"),
        memory_clock_mhz=numbers.get("clocks.mem"),
        power_w=numbers.get("power.draw"),
        power_limit_w=numbers.get("power.limit"),
        slowdown_mask=int(mask, 16),
    )


def _run(command: Sequence[str]) -> str | None:
    """Return the output of a command; None if it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_state(gpu_id: str, *, run: Callable[[Sequence[str]], str | None] = _run) -> MachineState:
    """Return the present state of the GPU that nvidia-smi knows as `gpu_id` (its index or UUID)."""
    for reason_field in REASON_FIELDS:
        fields = (*QUERY, reason_field)
        output = run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={gpu_id}"]
        )
        if output and output.strip():
            return parse_state(fields, output.strip().splitlines()[0])
    return MachineState()
