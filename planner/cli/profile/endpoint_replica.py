"""What a measured server runs on: as the options say, and for the rest as it says itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cli import console
from planner.errors import InputError, PlannerError

if TYPE_CHECKING:
    from planner.profilers.endpoint.result import Replica
    from planner.profilers.endpoint.session import Settings

OTHER_GPU = "other:"
"""Before the name of a GPU that the library does not have."""


def named(text: str, option: str) -> str:
    """Return a name without blanks around it, or refuse an empty one."""
    if not text.strip():
        raise InputError(f"{option} is empty.", hint="Give a name.")
    return text.strip()


def told(
    *, model: str, gpu: str, tp: int, pp: int, engine: str | None, version: str | None, precision: str
) -> dict[str, str | int]:
    """Return what the options say of the replica, names as the libraries have them; without what nobody has said."""
    from planner.domain.precision import BYTES_PER_PARAMETER

    if precision not in BYTES_PER_PARAMETER:
        raise InputError(
            f"{precision!r} is not a number format of weights.", hint=f"Use one of {', '.join(BYTES_PER_PARAMETER)}."
        )
    optional: dict[str, str | None] = {
        "engine": None if engine is None else _engine(named(engine, "--engine")),
        "engine_version": version,
    }
    said = {name: value for name, value in optional.items() if value is not None}
    parts: dict[str, str | int] = {
        "gpu": _gpu(gpu),
        "tensor_parallel": tp,
        "pipeline_parallel": pp,
        **said,
        "precision": precision,
    }
    return {"model": _library_name(named(model, "--record-as")), **parts}


def _gpu(name: str) -> str:
    """Return the library's name of a GPU; one that it does not have must be said to be another one."""
    from planner.catalog.gpus import load_gpus
    from planner.files.documents import did_you_mean

    own = name.removeprefix(OTHER_GPU)
    if own != name and own.strip():
        console.note(f"Note: {own!r} is no GPU of the library, so that no plan can use the profile.")
        return own.strip()
    gpus = load_gpus()
    known = gpus.find(named(name, "--gpu"))
    if known is None:
        near = did_you_mean(name, gpus.by_name)
        raise InputError(
            f"No GPU {name!r} is in the library.",
            hint=f"{near} `gpuplan catalog gpus` shows those that are known; --gpu {OTHER_GPU}NAME names another one,"
            " whose profile no plan can use.".lstrip(),
        )
    return known.gpu


def _engine(name: str) -> str:
    from planner.files.documents import did_you_mean
    from planner.profilers.efficiency import known_engines
    from planner.profilers.endpoint.identify import OWNERS

    engines = {*known_engines(), *(engine for engine, _ in OWNERS.values())}
    if name not in engines and (near := did_you_mean(name, engines)):
        raise InputError(f"No engine {name!r} is known.", hint=near)
    return name


def replica_of(settings: Settings) -> Replica:
    """Return what the server runs on: what the options say, and for the rest what it says itself."""
    import asyncio

    from planner.profilers.endpoint.identify import identify
    from planner.profilers.endpoint.result import Replica

    connection = settings.connection
    if connection.api_key and not connection.is_private:
        console.note(f"Note: the API key goes to {connection.url} without encryption.")
    parts = dict(settings.replica)
    said = asyncio.run(identify(connection, settings.model))
    engine = parts.setdefault("engine", said.engine)
    if not engine:
        raise InputError(
            f"{connection.url} does not say which engine it is.", hint="Say it: --engine vllm, for example."
        )
    if said.engine not in {"", engine}:
        console.note(f"Note: --engine says {engine}, the server says {said.engine}.")
    parts.setdefault("engine_version", said.version if said.engine == engine else "")
    return Replica(**parts)


def _library_name(name: str) -> str:
    from planner.catalog.models import load_model

    try:
        return load_model(name).name
    except PlannerError:
        console.note(f"Note: no model {name!r} is in the library; --record-as NAME says which one it is.")
        return name
