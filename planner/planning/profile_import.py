"""Benchmark files of any known tool as points of a profile: settled with the catalogs, checked, without doubles."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.precision import BYTES_PER_PARAMETER
from planner.errors import DataMissingError, InputError, UnsupportedFormatError, Where
from planner.files.documents import did_you_mean
from planner.profilers.efficiency import check_engine, engine_family
from planner.profilers.floor import violations
from planner.profilers.importers import PROFILE_NAME, importer_of, is_profile
from planner.profilers.importers.base import Given, Reading, Replica, Run
from planner.profilers.importers.content import read_content
from planner.profilers.importers.settle import ESTIMATED, contradictions, objections, settled
from planner.profilers.schema import COLUMNS, parse_points, points_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from planner.domain.model import ModelArchitecture
    from planner.profilers.importers.content import Content
    from planner.profilers.schema import MeasuredPoint

RESULT_SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".yaml", ".yml", ".md"})
"""Files of a folder that are looked into."""
FAILURE_SUFFIX = ".failure.json"
"""What `vllm bench sweep` writes for a combination that did not run."""
UNUSED_KINDS = frozenset({"request_rate", "static_batch"})
"""Loads that say what a replica did, not what it could do most; `MeasuredStore.lookup` leaves them out."""
NAME_FIELDS = frozenset({"source_ref", "notes"})
"""Columns that do not tell two points apart: a renamed file is the same file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of some files."""

    points: tuple[MeasuredPoint, ...]
    left_out: tuple[str, ...] = ()
    """Each begins with its file."""
    n_doubles: int = 0
    """Points that were there already."""
    remarks: tuple[str, ...] = ()
    """What had to be assumed, and what could not be checked."""


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """What has been read so far."""

    points: list[MeasuredPoint] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    n_other: int = 0
    """Rows of tables that are of other replicas than the one asked for."""


class Catalogs:
    """Names that the bundled catalogs know; the `Names` of the importers."""

    def __init__(self, own_model: str = "") -> None:
        """Remember the model that the user named, which alone may be the path of a config.json."""
        self._own = own_model

    def gpu(self, name: str) -> str | None:
        """Return the catalog's name of a GPU; None if it does not have it."""
        found = load_gpus().find(name)
        return None if found is None else found.gpu

    def model(self, name: str) -> str | None:
        """Return the library's name of a model; None if it does not have it."""
        found = self.architecture(name)
        return None if found is None else found.name

    def architecture(self, name: str) -> ModelArchitecture | None:
        """Return the model that `name` means; None if the library does not have it."""
        is_path = name.startswith((".", "/", "~")) or name.lower().endswith(".json")
        if is_path and name != self._own:
            return None  # a path in somebody's result says nothing here
        try:
            return load_model(name)
        except (DataMissingError, InputError):
            return None


def checked_replica(replica: Replica) -> Replica:
    """Return what the user says of the replica, with the GPU's and the model's own names.

    Raises
    ------
    DataMissingError: if GPU or model are not known; with the names that were probably meant.
    InputError: if engine or precision are not known, or a count is not positive.
    """
    for option, value in (
        ("--tp", replica.tensor_parallel),
        ("--pp", replica.pipeline_parallel),
        ("--ep", replica.expert_parallel),
    ):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} is not a number of GPUs.")
    if replica.engine:
        check_engine(replica.engine)
    precision = replica.precision.lower()
    if precision and precision not in BYTES_PER_PARAMETER:
        hint = did_you_mean(precision, BYTES_PER_PARAMETER) or f"Use one of {', '.join(BYTES_PER_PARAMETER)}."
        raise InputError(f"{replica.precision!r} is no precision.", hint=hint)
    return replace(
        replica,
        gpu=load_gpus().get(replica.gpu).name if replica.gpu else "",
        model=load_model(replica.model).name if replica.model else "",
        engine=engine_family(replica.engine) if replica.engine else "",
        precision=precision,
    )


def import_files(
    paths: Sequence[Path], given: Given, *, format_name: str | None = None, known: Iterable[MeasuredPoint] = ()
) -> Imported:
    """Return the points of some files and folders.

    Parameters
    ----------
    given : what the user says of the measurements; its names as the user wrote them.
    format_name : the format to insist on; None = by content.
    known : points that are there already, and are not returned again.

    Raises
    ------
    InputError: if a file is broken, lacks what only the user knows, or contradicts what the user says; if nothing is
        left of all files.
    UnsupportedFormatError: if a file is of no format or version that is read.
    DataMissingError: if the user's GPU or model is not known.
    """
    catalogs = Catalogs(given.replica.model)
    own = given.replica.model
    asked = replace(given, replica=replace(checked_replica(given.replica), model=own))
    gathered = _Gathered()
    _remember_alias(given.replica.gpu, gathered)
    for path in paths:
        if path.is_dir():
            _import_folder(path, asked, catalogs, format_name, gathered)
        else:
            _import_content(read_content(path), asked, catalogs, format_name, gathered)
    if gathered.n_other:
        gathered.left_out.append(f"rows of other replicas than the one asked for: {gathered.n_other}")
    if not gathered.points:
        detail = f": {'; '.join(gathered.left_out)}" if gathered.left_out else ""
        raise InputError(f"Nothing can be imported{detail}.", where=Where(path=str(paths[0])))
    fresh = tuple(_without_doubles(gathered.points, known))
    gathered.remarks += _remarks(gathered.points)
    return Imported(
        points=fresh,
        left_out=tuple(gathered.left_out),
        n_doubles=len(gathered.points) - len(fresh),
        remarks=tuple(dict.fromkeys(gathered.remarks)),
    )


def _import_folder(
    folder: Path, given: Given, catalogs: Catalogs, format_name: str | None, gathered: _Gathered
) -> None:
    """Import what is a result among the files of a folder and its subfolders.

    A sweep's summaries repeat its runs: a file whose points are all in others already adds none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in RESULT_SUFFIXES)
    n_results = 0
    for path in paths:
        if path.name.endswith(FAILURE_SUFFIX):
            gathered.left_out.append(f"{path}: the benchmark failed")
            continue
        try:
            content = read_content(path)
            if not is_profile(content):
                importer_of(content, format_name)
        except UnsupportedFormatError as error:
            gathered.left_out.append(f"{path}: {error.message.rstrip('.')}")
            continue
        n_results += 1
        _import_content(content, given, catalogs, format_name, gathered)
    if not n_results:
        raise InputError(
            f"The folder holds no result that can be read ({len(paths)} files looked into).",
            hint="Name the files themselves to be told what is wrong with each.",
            where=Where(path=str(folder)),
        )
    kept = list(_without_repeats(gathered.points))
    if len(kept) < len(gathered.points):
        gathered.remarks.append(
            f"{len(gathered.points) - len(kept)} points of {folder} repeat others there (a sweep's summary)"
        )
        gathered.points = kept


def _import_content(
    content: Content, given: Given, catalogs: Catalogs, format_name: str | None, gathered: _Gathered
) -> None:
    name = content.path
    if is_profile(content) and format_name in {None, PROFILE_NAME}:
        _import_profile(content, given, catalogs, gathered)
        return
    if format_name == PROFILE_NAME:
        raise UnsupportedFormatError("The file is not one of gpuplan's profiles.", where=content.where)
    reading: Reading = importer_of(content, format_name).read(content, given)
    gathered.left_out += [f"{name}: {reason}" for reason in reading.left_out]
    n_before = gathered.n_other
    n_settled = 0
    against: tuple[str, ...] = ()
    for run in reading.runs:
        if reading.is_table and (found := contradictions(run, given, catalogs)):
            gathered.n_other += 1
            against = found
            continue
        point = settled(run, given, catalogs, content)
        n_settled += 1
        _add(point, list(objections(run, point)), f"{name}{f', {run.label}' if run.label else ''}", catalogs, gathered)
        if not given.replica.gpu:
            _remember_alias(run.replica.gpu, gathered)
    if reading.runs and not n_settled and gathered.n_other > n_before:
        raise InputError(f"No row is of the replica asked for: {'; '.join(against)}.", where=content.where)


def _import_profile(content: Content, given: Given, catalogs: Catalogs, gathered: _Gathered) -> None:
    """Take the points of one of gpuplan's own files, those of the replica that is asked for, as they stand."""
    n_before = len(gathered.points) + len(gathered.left_out)
    against: tuple[str, ...] = ()
    for point in parse_points(content.text, content.path, with_unusable=True):
        stated = Run(
            where=point.where,
            tool=point.tool,
            replica=Replica(
                model=point.model,
                gpu=point.gpu,
                tensor_parallel=point.tensor_parallel,
                pipeline_parallel=point.pipeline_parallel,
                expert_parallel=point.expert_parallel,
                engine=point.engine,
                engine_version=point.engine_version,
                precision=point.precision,
            ),
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            load_kind=point.load_kind,
            load=point.load,
        )
        if found := contradictions(stated, given, catalogs):
            gathered.n_other += 1
            against = found
            continue
        own = point if point.source_sha256 else replace(point, source_sha256=content.sha256)
        _add(own, [], f"{content.path}, line {point.where.line}", catalogs, gathered)
    if len(gathered.points) + len(gathered.left_out) == n_before and against:
        raise InputError(f"No row is of the replica asked for: {'; '.join(against)}.", where=content.where)


def _add(point: MeasuredPoint, reasons: list[str], label: str, catalogs: Catalogs, gathered: _Gathered) -> None:
    """Take a point, or say why it is left out: physically impossible ones with the bound that they break."""
    model, gpu = catalogs.architecture(point.model), load_gpus().by_name.get(catalogs.gpu(point.gpu) or "")
    if model is None:
        gathered.remarks.append(
            f"{point.model} is not in the model library: nothing was checked against what its GPU can do"
        )
    is_checked = model is not None and gpu is not None
    if model is not None and gpu is not None:
        reasons = [*reasons, *violations(point, model, gpu)]
    if reasons:
        gathered.left_out.append(f"{label}: {'; '.join(reasons)}")
    elif is_checked and point.sanity in {"", "unchecked"}:
        gathered.points.append(replace(point, sanity="ok"))
    else:
        gathered.points.append(point)


def _remember_alias(stated: str, gathered: _Gathered) -> None:
    found = load_gpus().find(stated)
    if found is not None and found.note:
        gathered.remarks.append(f"{stated} is read as {found.gpu}: {found.note}")


def _remarks(points: Sequence[MeasuredPoint]) -> Iterator[str]:
    n_estimates = sum(point.sanity == ESTIMATED for point in points)
    if n_estimates:
        yield f"Estimates of a tool, which plans leave out (sanity {ESTIMATED}): {n_estimates}"

    n_unused = sum(point.load_kind in UNUSED_KINDS and point.sanity != ESTIMATED for point in points)
    if n_unused:
        yield f"Plans take throughput from closed loops and offline runs; points of other loads, kept too: {n_unused}"


def _identity(point: MeasuredPoint, *, ignoring: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Return what makes a point the same as another: its cells as they are written."""
    row = next(csv.DictReader(io.StringIO(points_csv([point]))))
    return frozenset((column, value) for column, value in row.items() if value and column not in ignoring)


def _without_doubles(points: Iterable[MeasuredPoint], known: Iterable[MeasuredPoint]) -> Iterator[MeasuredPoint]:
    seen = {_identity(point, ignoring=NAME_FIELDS) for point in known}
    for point in points:
        key = _identity(point, ignoring=NAME_FIELDS)
        if key not in seen:
            seen.add(key)
            yield point


def _without_repeats(points: Iterable[MeasuredPoint]) -> Iterator[MeasuredPoint]:
    """Yield the points whose figures no earlier one of another file has."""
    seen: dict[frozenset[tuple[str, str]], str] = {}
    for point in points:
        key = _identity(point, ignoring=NAME_FIELDS | {"source_sha256"})
        if seen.setdefault(key, point.source_sha256) == point.source_sha256:
            yield point


def appended(text: str, path: str, points: Sequence[MeasuredPoint]) -> str:
    """Return the profile file `text` with `points` below its rows, whose cells stay as they are.

    Raises
    ------
    InputError: if `text` is no profile file.
    """
    parse_points(text, path, with_unusable=True)
    old = csv.DictReader(io.StringIO(text))
    new = csv.DictReader(io.StringIO(points_csv(points)))
    names = {*(old.fieldnames or ()), *(new.fieldnames or ())}
    written = io.StringIO()
    writer = csv.DictWriter(written, _ordered(old.fieldnames or (), names), restval="", lineterminator="\n")
    writer.writeheader()
    rows: Iterable[Mapping[str, str]] = [*old, *new]
    writer.writerows(rows)
    return written.getvalue()


def _ordered(first: Sequence[str], names: set[str]) -> list[str]:
    """Return the columns of a file as they are, those that it lacks after them."""
    return [*first, *(column for column in COLUMNS if column in names and column not in first)]
