"""Running kernels with torch and timing them; the only module that imports torch, and only when it is asked to.

On a GPU, calls are timed by CUDA events around a CUDA graph of them, as engines replay graphs when they decode; where
a kernel cannot be captured, around plain launches. What engines read from memory (weights, caches) is rotated through
copies that together exceed the last-level cache.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.domain.precision import BYTES_PER_PARAMETER
from planner.errors import DataMissingError
from planner.profilers.kernels.run import Outcome
from planner.profilers.kernels.sampling import (
    LEAST_SAMPLES,
    MOST_CALLS,
    SAMPLE_S,
    Timing,
    collect,
    is_settled,
    median_interval,
)
from planner.profilers.kernels.shapes import Kernel, KernelKind
from planner.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CACHE_TIMES = 2.0
"""Copies of what is read together have so many times the size of the last-level cache."""

UNKNOWN_CACHE_BYTES = 256e6
"""Where torch does not tell: more than the L2 cache of any GPU in the catalog (MI300X: 256 MB of Infinity Cache)."""

MOST_COPIES = 256
"""Smaller operands than a 256th of the cache belong to kernels that are bound by their launch anyway."""

FREE_PART = 0.8
"""Of the free memory that one shape may take."""

WARM_UP_S = 0.5
"""Clocks of an idle GPU take some tenths of a second to rise."""

REDUCE_TIMEOUT_S = 120.0
REDUCE_SAMPLES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What torch says of the device."""

    kind: str
    """"cuda" (NVIDIA and, under ROCm, AMD) or "cpu"."""
    name: str
    torch_version: str
    runtime: str
    """"CUDA 12.8", "HIP 6.3", or "" on a CPU."""
    memory_bytes: float
    cache_bytes: float
    n_devices: int
    half_dtype: str
    """"bf16", or "fp16" on GPUs without bf16 arithmetic."""
    unsupported_formats: dict[str, str]
    """Formats that cannot be timed here, with the reason."""


def _import_torch() -> Any:  # noqa: ANN401 - torch is optional, and so are its types
    try:
        import torch  # noqa: PLC0415 - seconds to import, and optional
    except ImportError as error:
        raise DataMissingError(
            "Timing kernels needs torch, which is not installed here.",
            hint="Install it on the GPU's machine: pip install 'gpuplan[gpu]'. --dry-run lists the shapes without it.",
        ) from error
    return torch


def open_device(device: str) -> TorchTimer:
    """Return a timer on the first visible GPU, or on the processor; nothing runs there before `probe`.

    Parameters
    ----------
    device : "auto" (a GPU), "cuda" or "cpu".

    Raises
    ------
    DataMissingError: if torch is not installed, or sees no GPU where one is wanted.
    """
    torch = _import_torch()
    if device != "cpu" and not torch.cuda.is_available():
        raise DataMissingError(
            "torch sees no GPU here.",
            hint="Check the driver and that torch was built for it; --device cpu times the processor, to try this out.",
        )
    kind = "cpu" if device == "cpu" else "cuda"
    half = torch.bfloat16
    if kind == "cuda" and torch.cuda.get_device_capability() < (8, 0) and not torch.version.hip:
        half = torch.float16
    return TorchTimer(torch=torch, kind=kind, half=half)


def _cpu_facts() -> tuple[str, float]:
    """Return the processor's name and the bytes of its memory."""
    name = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or "processor", float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass(slots=True, kw_only=True)
class TorchTimer:
    """Times kernels on one device of torch's."""

    torch: Any
    kind: str
    half: Any
    fp8: Any = None
    unsupported_formats: dict[str, str] = field(default_factory=dict)
    uses_graphs: bool = True
    """Whether every kernel so far could be captured in a CUDA graph."""

    def probe(self) -> None:
        """Find out which formats multiply here, and raise the clocks."""
        with self.torch.inference_mode():
            self._probe_fp8()
            if self.kind == "cuda":
                self._warm_up()

    def _probe_fp8(self) -> None:
        for name in ("float8_e4m3fn", "float8_e4m3fnuz"):  # the second is what MI300X multiplies
            self.fp8 = getattr(self.torch, name, None)
            try:
                if self.fp8 is None:
                    self.unsupported_formats["fp8"] = "this torch has no fp8 type"
                    continue
                probe = Kernel(
                    kind=KernelKind.LINEAR, role="probe", number_format="fp8", tokens=16, width_in=64, width_out=64
                )
                self._product(probe, 1)(0)
            except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
                self.unsupported_formats["fp8"] = _first_line(error)
                continue
            self.unsupported_formats.pop("fp8", None)
            break

    def _warm_up(self) -> None:
        warm = Kernel(kind=KernelKind.LINEAR, role="probe", tokens=4096, width_in=4096, width_out=4096)
        call, end = self._product(warm, 1), time.perf_counter() + WARM_UP_S
        while time.perf_counter() < end:
            call(0)
            self.torch.cuda.synchronize()

    @property
    def method(self) -> str:
        """How calls are timed, in words."""
        if self.kind == "cpu":
            return "perf_counter around calls in a row"
        return "CUDA events around CUDA graphs" if self.uses_graphs else "CUDA events around plain launches"

    @property
    def gpu_id(self) -> str:
        """The GPU as nvidia-smi knows it; "" for a processor."""
        if self.kind == "cpu":
            return ""
        uuid = str(getattr(self.torch.cuda.get_device_properties(0), "uuid", ""))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        return f"GPU-{uuid.removeprefix('GPU-')}" if uuid else visible or "0"

    def facts(self) -> DeviceFacts:
        """Return what torch says of the device."""
        torch = self.torch
        half = "bf16" if self.half is torch.bfloat16 else "fp16"
        if self.kind == "cpu":
            name, memory = _cpu_facts()
            return DeviceFacts(
                kind="cpu",
                name=name,
                torch_version=str(torch.__version__),
                runtime="",
                memory_bytes=memory,
                cache_bytes=self._cache_bytes(),
                n_devices=1,
                half_dtype=half,
                unsupported_formats=dict(self.unsupported_formats),
            )
        properties = torch.cuda.get_device_properties(0)
        return DeviceFacts(
            kind="cuda",
            name=str(properties.name),
            torch_version=str(torch.__version__),
            runtime=f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
            memory_bytes=float(properties.total_memory),
            cache_bytes=self._cache_bytes(),
            n_devices=int(torch.cuda.device_count()),
            half_dtype=half,
            unsupported_formats=dict(self.unsupported_formats),
        )

    def time(self, kernel: Kernel, *, limit_s: float) -> Outcome:
        """Return the timing of one kernel, or why it cannot be timed here."""
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()  # what the kernel before this one has left
        reason = self.unsupported_formats.get(kernel.number_format, "")
        n_copies = self._n_copies(kernel)
        need, free = self._need_bytes(kernel, n_copies), self._free_bytes()
        if not reason and need > free * FREE_PART:
            reason = f"it takes {format_bytes(need)}, and {format_bytes(free)} are free"
        if reason:
            return Outcome(kernel=kernel, skipped=reason)
        try:
            with self.torch.inference_mode():
                call = self._build(kernel, n_copies)
                call(0)  # the first call loads code and chooses an algorithm
                self._synchronize()
                sampler = _Sampler(timer=self, call=call, n_copies=n_copies)
                timing = collect(
                    sampler.sample, limit_s=limit_s, clock=time.perf_counter, least_calls=sampler.least_calls
                )
        except (RuntimeError, NotImplementedError, ValueError) as error:
            is_memory = isinstance(error, self.torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)
            what = "out of memory" if is_memory else "torch refused it"
            return Outcome(kernel=kernel, skipped=f"{what}: {_first_line(error)}")
        return Outcome(kernel=kernel, timing=timing)

    def time_all_reduces(self, kernels: Sequence[Kernel], *, limit_s: float) -> tuple[Outcome, ...]:
        """Return the timings of all-reduces over the same number of devices, in processes of their own."""
        from torch import multiprocessing  # noqa: PLC0415 - as torch itself

        n_ranks = kernels[0].batch
        elements = [kernel.tokens * kernel.width_in for kernel in kernels]
        with tempfile.TemporaryDirectory(prefix="gpuplan-") as folder:
            result = Path(folder) / "seconds.json"
            task = _ReduceTask(
                n_ranks=n_ranks,
                kind=self.kind,
                store=str(Path(folder) / "store"),
                result=str(result),
                elements=tuple(elements),
                limit_s=limit_s / len(elements),
            )
            try:
                multiprocessing.spawn(_reduce_rank, args=(task,), nprocs=n_ranks, join=True)
                samples = json.loads(result.read_text(encoding="utf-8"))
            except (RuntimeError, OSError, ValueError, multiprocessing.ProcessExitedException) as error:
                reason = f"the all-reduce failed: {_first_line(error)}"
                return tuple(Outcome(kernel=kernel, skipped=reason) for kernel in kernels)
        return tuple(
            Outcome(kernel=kernel, timing=_reduce_timing(found)) for kernel, found in zip(kernels, samples, strict=True)
        )

    # building

    def _build(self, kernel: Kernel, n_copies: int) -> Callable[[int], None]:
        """Return a function that runs `kernel` once, on the copy of its operands that its argument names."""
        builders: dict[KernelKind, Callable[[Kernel, int], Callable[[int], None]]] = {
            KernelKind.LAUNCH: self._elementwise,
            KernelKind.ELEMENTWISE: self._elementwise,
            KernelKind.LINEAR: self._product,
            KernelKind.HEAD: self._product,
            KernelKind.EXPERTS: self._experts,
            KernelKind.PREFILL_ATTENTION: self._prefill,
            KernelKind.DECODE_ATTENTION: self._decode,
        }
        return builders[kernel.kind](kernel, n_copies)

    def _random(self, *shape: int) -> Any:  # noqa: ANN401 - a tensor
        """Return random numbers: a GPU draws more power on them, and clocks lower, than on zeros."""
        return self.torch.randn(shape, device=self.kind, dtype=self.torch.float32).to(self.half)

    def _elementwise(self, kernel: Kernel, _n_copies: int) -> Callable[[int], None]:
        shape = (kernel.tokens, max(kernel.width_in, 1))
        first, second = self._random(*shape), self._random(*shape)
        out = self.torch.empty_like(first)
        add = self.torch.add

        def call(_at: int) -> None:
            add(first, second, out=out)

        return call

    def _product(self, kernel: Kernel, n_copies: int) -> Callable[[int], None]:
        rows = self._random(kernel.tokens, kernel.width_in)
        weight = self._random(kernel.width_out, kernel.width_in)
        if kernel.number_format != "fp8":
            weights = [weight, *(weight.clone() for _ in range(n_copies - 1))]
            out = self.torch.empty((kernel.tokens, kernel.width_out), device=self.kind, dtype=self.half)
            multiply = self.torch.mm

            def call(at: int) -> None:
                multiply(rows, weights[at].t(), out=out)

            return call
        small = weight.to(self.fp8)
        smalls = [small, *(small.clone() for _ in range(n_copies - 1))]
        entry, one = rows.to(self.fp8), self.torch.ones((), device=self.kind, dtype=self.torch.float32)
        scaled, half = self.torch._scaled_mm, self.half  # noqa: SLF001 - torch has no public name for it yet

        def call_fp8(at: int) -> None:
            scaled(entry, smalls[at].t(), scale_a=one, scale_b=one, out_dtype=half)

        return call_fp8

    def _experts(self, kernel: Kernel, n_copies: int) -> Callable[[int], None]:
        rows = self._random(kernel.batch, kernel.tokens, kernel.width_in)
        weight = self._random(kernel.batch, kernel.width_out, kernel.width_in)
        weights = [weight, *(weight.clone() for _ in range(n_copies - 1))]
        out = self.torch.empty((kernel.batch, kernel.tokens, kernel.width_out), device=self.kind, dtype=self.half)
        multiply = self.torch.bmm

        def call(at: int) -> None:
            multiply(rows, weights[at].transpose(1, 2), out=out)

        return call

    def _prefill(self, kernel: Kernel, _n_copies: int) -> Callable[[int], None]:
        heads, tokens = kernel.n_query_heads, kernel.tokens
        query, key = (self._random(1, heads, tokens, kernel.head_dim) for _ in range(2))
        value = self._random(1, heads, tokens, kernel.value_head_dim)
        attend = self.torch.nn.functional.scaled_dot_product_attention

        def call(_at: int) -> None:
            attend(query, key, value, is_causal=True)

        return call

    def _decode(self, kernel: Kernel, n_copies: int) -> Callable[[int], None]:
        """One query token per sequence; the query heads that share a KV head become the rows of one query."""
        shape = (kernel.batch, kernel.n_kv_heads, kernel.context_tokens)
        rows = max(1, kernel.n_query_heads // kernel.n_kv_heads)
        query = self._random(kernel.batch, kernel.n_kv_heads, rows, kernel.head_dim)
        key = self._random(*shape, kernel.head_dim)
        keys = [key, *(key.clone() for _ in range(n_copies - 1))]
        if kernel.value_head_dim == kernel.head_dim:
            values = [key.clone() for _ in range(n_copies)]
        else:  # latent attention: the values are the first part of what is cached
            values = [cached[..., : kernel.value_head_dim] for cached in keys]
        attend = self.torch.nn.functional.scaled_dot_product_attention

        def call(at: int) -> None:
            attend(query, keys[at], values[at])

        return call

    # memory

    def _cache_bytes(self) -> float:
        if self.kind == "cuda":
            told = getattr(self.torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            return float(told) if told and not self.torch.version.hip else UNKNOWN_CACHE_BYTES
        try:
            return float(max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), os.sysconf("SC_LEVEL2_CACHE_SIZE"), 2**20))
        except (ValueError, OSError):  # not every system knows these names
            return UNKNOWN_CACHE_BYTES

    def _n_copies(self, kernel: Kernel) -> int:
        if not kernel.cold_bytes:
            return 1
        return max(1, min(MOST_COPIES, math.ceil(CACHE_TIMES * self._cache_bytes() / kernel.cold_bytes)))

    def _need_bytes(self, kernel: Kernel, n_copies: int) -> float:
        """Return the bytes that a shape's operands take.

        Random numbers are drawn in fp32 and rounded to 16 bits, one operand at a time.
        """
        drawn = kernel.cold_bytes / BYTES_PER_PARAMETER[kernel.number_format] * 6.0
        scores = 0.0
        if kernel.head_dim and not kernel.is_fused:  # torch then stores what every query makes of every key, in fp32
            seen = kernel.context_tokens or kernel.tokens
            scores = 2.0 * 4.0 * kernel.batch * kernel.n_query_heads * kernel.tokens * seen
        return kernel.moved_bytes + (n_copies - 1) * kernel.cold_bytes + drawn + scores

    def _free_bytes(self) -> float:
        if self.kind == "cuda":
            return float(self.torch.cuda.mem_get_info()[0])
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    def _synchronize(self) -> None:
        if self.kind == "cuda":
            self.torch.cuda.synchronize()


@dataclass(slots=True, kw_only=True)
class _Sampler:
    """Times a number of calls in a row."""

    timer: TorchTimer
    call: Callable[[int], None]
    n_copies: int
    next_copy: int = 0
    graph: Any = None
    graph_calls: int = 0

    @property
    def least_calls(self) -> int:
        """A graph always starts at the first copy: all of them have to be in it, or it would find its own in cache."""
        return min(self.n_copies, MOST_CALLS) if self.timer.kind == "cuda" else 1

    def sample(self, n_calls: int) -> float:
        """Return the seconds that `n_calls` calls take."""
        if self.timer.kind == "cpu":
            start = time.perf_counter()
            self._calls(n_calls)
            return time.perf_counter() - start
        # one call in a sample lasts a millisecond, beside which its launch is nothing
        if n_calls > 1 and n_calls >= self.least_calls and self.timer.uses_graphs and self.graph_calls != n_calls:
            self._capture(n_calls)
        cuda = self.timer.torch.cuda
        start_event, end_event = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        start_event.record()
        if self.graph_calls == n_calls:
            self.graph.replay()
        else:
            self._calls(n_calls)
        end_event.record()
        end_event.synchronize()
        return float(start_event.elapsed_time(end_event)) / 1e3

    def _calls(self, n_calls: int) -> None:
        for _ in range(n_calls):
            self.call(self.next_copy)
            self.next_copy = (self.next_copy + 1) % self.n_copies

    def _capture(self, n_calls: int) -> None:
        cuda = self.timer.torch.cuda
        graph = cuda.CUDAGraph()
        self.next_copy = 0
        try:
            with cuda.graph(graph):
                self._calls(n_calls)
            graph.replay()
            cuda.synchronize()
        except RuntimeError:  # not capturable: plain launches from here on, and the document says so
            self.timer.uses_graphs = False
            return
        self.graph, self.graph_calls = graph, n_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReduceTask:
    """What every process of an all-reduce is told."""

    n_ranks: int
    kind: str
    store: str
    result: str
    elements: tuple[int, ...]
    limit_s: float
    """For each size."""


def _reduce_rank(rank: int, task: _ReduceTask) -> None:
    """Run all-reduces of each size in one of the processes; the first of them writes what they took."""
    import torch  # noqa: PLC0415 - a process of its own
    from torch import distributed  # noqa: PLC0415

    if task.kind == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if task.kind == "cuda" else "gloo",
        init_method=f"file://{task.store}",
        rank=rank,
        world_size=task.n_ranks,
        timeout=timedelta(seconds=REDUCE_TIMEOUT_S),
    )

    def seconds(tensor: Any, n_calls: int) -> float:  # noqa: ANN401 - a tensor
        if task.kind == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n_calls):
            distributed.all_reduce(tensor)
        if task.kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    try:
        found = []
        for n_elements in task.elements:
            tensor = torch.zeros(n_elements, device=task.kind, dtype=torch.bfloat16)
            seconds(tensor, 2)
            once = torch.tensor([seconds(tensor, 1)], device=task.kind, dtype=torch.float32)
            distributed.all_reduce(once, op=distributed.ReduceOp.MAX)  # all ranks must agree on how often
            once_s = max(float(once), 1e-6)
            n_calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_S / once_s)))
            n_samples = max(LEAST_SAMPLES, min(REDUCE_SAMPLES, int(task.limit_s / (once_s * n_calls))))
            found.append({"calls": n_calls, "seconds": [seconds(tensor, n_calls) / n_calls for _ in range(n_samples)]})
        if rank == 0:
            Path(task.result).write_text(json.dumps(found), encoding="utf-8")
    finally:
        distributed.destroy_process_group()


def _reduce_timing(found: dict[str, Any]) -> Timing:
    middle, low, high = median_interval(found["seconds"])
    return Timing(
        median_s=middle,
        low_s=low,
        high_s=high,
        n_samples=len(found["seconds"]),
        calls_per_sample=int(found["calls"]),
        is_settled=is_settled(found["seconds"]),
    )
