"""The names that a plan uses for options and buckets."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.optimize.arrays import option_sort_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.domain.hardware import EngineConfig
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket

_DETAILS: tuple[Callable[[EngineConfig], str], ...] = (
    lambda config: f"kv {config.kv_precision}",
    lambda config: f"{config.engine} {config.engine_version}".strip(),
    lambda config: f"max_num_seqs {config.max_num_seqs}",
    lambda config: f"max_num_batched_tokens {config.max_num_batched_tokens}",
)
"""What is added, one after the other, where precision and parallelism do not tell two options apart."""


def option_keys(options: Sequence[ServingOption]) -> list[str]:
    """Return each option's key in a plan, unique within its service.

    The offer's name where the service has one option on that offer, else the name and the engine configuration:
    "aws/p5/us-east-1/on-demand[fp8 tp2]", with the role where it is but a part of serving: "...[prefill fp8 tp2]", and
    the number of adapters that a replica holds where requests are for adapters: "...[bf16 tp1 16 adapters]".
    """
    alone = Counter((option.service, option.offer.name) for option in options)
    keys = [
        option.offer.name
        if alone[option.service, option.offer.name] == 1 and option.role is Role.BOTH
        else _key(option, n_details=0)
        for option in options
    ]
    for n_details in range(1, len(_DETAILS) + 1):
        count = Counter((option.service, key) for option, key in zip(options, keys, strict=True))
        if len(count) == len(keys):
            return keys
        keys = [
            key if count[option.service, key] == 1 else _key(option, n_details=n_details)
            for option, key in zip(options, keys, strict=True)
        ]
    return _numbered(options, keys)


def _key(option: ServingOption, *, n_details: int) -> str:
    config = option.config
    role = [] if option.role is Role.BOTH else [option.role.value]
    if config is None:
        slots = [] if option.slots is None else [f"{option.slots.count} adapters"]
        return f"{option.offer.name}[{' '.join([f'{option.gpus_per_replica} GPUs', *role, *slots])}]"
    words = [*role, config.precision, f"tp{config.tensor_parallel}"]
    if config.pipeline_parallel > 1:
        words.append(f"pp{config.pipeline_parallel}")
    if config.power_cap_w is not None:
        words.append(f"{config.power_cap_w:.0f}W")
    if option.slots is not None:
        words.append(f"{option.slots.count} {'adapter' if option.slots.count == 1 else 'adapters'}")
    words += [detail(config) for detail in _DETAILS[:n_details]]
    return f"{option.offer.name}[{' '.join(words)}]"


def _numbered(options: Sequence[ServingOption], keys: list[str]) -> list[str]:
    """Return `keys` with what is still equal numbered, in the options' canonical order."""
    count = Counter((option.service, key) for option, key in zip(options, keys, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    result = list(keys)
    alike = [index for index, option in enumerate(options) if count[option.service, keys[index]] > 1]
    for index in sorted(alike, key=lambda i: option_sort_key(options[i])):
        place = (options[index].service, keys[index])
        if count[place] > 1:
            seen[place] += 1
            result[index] = f"{keys[index]}#{seen[place]}"
    return result


def service_order(problem: FleetProblem) -> dict[str, int]:
    """Return in which order services and then jobs stand, as the request has them."""
    names = [*(demand.service for demand in problem.demands), *(job.name for job in problem.jobs)]
    return {name: index for index, name in enumerate(names)}


def bucket_name(service: str, bucket: Bucket) -> str:
    """Return a bucket in words: "chat: input [0, 100), output [0, 25)", or by row and column; with its group."""
    if bucket.group is not None:
        service = f"{service}, adapters of group {bucket.group}"
        if bucket.input_range is None:
            return service
    if bucket.input_range is None or bucket.output_range is None:
        return f"{service}: bucket row {bucket.row}, column {bucket.column}"
    (in_low, in_high), (out_low, out_high) = bucket.input_range, bucket.output_range
    return f"{service}: input [{in_low}, {in_high}), output [{out_low}, {out_high}) tokens"
