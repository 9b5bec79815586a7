"""A GPU whose rates are known: what kernels take on it follows from the roofline, so that a fit can be checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from planner.profilers.kernels.run import Outcome
from planner.profilers.kernels.sampling import Timing
from planner.profilers.kernels.shapes import Kernel, KernelKind
from planner.profilers.kernels.timing import DeviceFacts


@dataclass
class SyntheticGpu:
    """Stands where a TorchTimer stands; time passes by what is run on it."""

    name: str = "NVIDIA H100 80GB HBM3"
    memory_bytes: float = 79.1 * 2**30
    flops_per_s: dict[str, float] = field(default_factory=lambda: {"bf16": 650e12, "fp8": 1200e12})
    weight_bytes_per_s: float = 2.7e12
    attention_flops_per_s: float = 500e12
    kv_bytes_per_s: float = 2.5e12
    launch_s: float = 2e-6
    link_bytes_per_s: float = 300e9
    allreduce_latency_s: float = 6e-6
    n_devices: int = 1
    unsupported_formats: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Kernel key -> why it cannot be timed."""
    too_fast: frozenset[str] = frozenset()
    """Keys of kernels that seem to take no time at all."""
    now_s: float = 0.0
    seconds_per_kernel: float = 0.5
    timed: list[str] = field(default_factory=list)
    interrupt_after: int | None = None

    method = "a formula"
    gpu_id = "0"

    def probe(self) -> None:
        """Nothing to find out."""

    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            kind="cuda",
            name=self.name,
            torch_version="2.13.0",
            runtime="CUDA 13.0",
            memory_bytes=self.memory_bytes,
            cache_bytes=50e6,
            n_devices=self.n_devices,
            half_dtype="bf16",
            unsupported_formats=self.unsupported_formats,
        )

    def clock(self) -> float:
        return self.now_s

    def seconds(self, kernel: Kernel) -> float:
        if kernel.key in self.too_fast:
            return 1e-9
        rate = self.flops_per_s.get(kernel.number_format, 1.0)
        work = {
            KernelKind.PREFILL_ATTENTION: kernel.flops / self.attention_flops_per_s,
            KernelKind.DECODE_ATTENTION: kernel.cold_bytes / self.kv_bytes_per_s,
            KernelKind.LAUNCH: 0.0,
            KernelKind.ELEMENTWISE: 0.0,
        }
        if kernel.kind is KernelKind.ALL_REDUCE:
            moved = 2 * (kernel.batch - 1) / kernel.batch * kernel.cold_bytes
            return self.allreduce_latency_s * math.log2(kernel.batch) + moved / self.link_bytes_per_s
        product = math.hypot(kernel.flops / rate, kernel.cold_bytes / self.weight_bytes_per_s)
        return max(self.launch_s, work.get(kernel.kind, product))

    def time(self, kernel: Kernel, *, limit_s: float) -> Outcome:
        if self.interrupt_after is not None and len(self.timed) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.now_s += min(limit_s, self.seconds_per_kernel) + 4 * self.seconds(kernel)
        self.timed.append(kernel.key)
        if kernel.key in self.refused:
            return Outcome(kernel=kernel, skipped=self.refused[kernel.key])
        seconds = self.seconds(kernel)
        timing = Timing(
            median_s=seconds,
            low_s=seconds,
            high_s=seconds,
            n_samples=6,
            calls_per_sample=10,
            is_settled=True,
        )
        return Outcome(kernel=kernel, timing=timing)

    def time_all_reduces(self, kernels, *, limit_s: float) -> tuple[Outcome, ...]:
        return tuple(self.time(kernel, limit_s=limit_s / len(kernels)) for kernel in kernels)
