"""YAML and JSON documents, read so that an error can name the line.

YAML is read as YAML 1.2 by ruamel.yaml: `12:30:00` stays text, and a duplicate key is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, UnsupportedFormatError, Where

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from pathlib import Path

    from pydantic import BaseModel, ValidationError

MAX_DOCUMENT_BYTES = 5_000_000
"""A request is a page of text; anything larger is another kind of file."""

Path_ = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document and where each of its fields stands."""

    data: Any
    path: str
    sha256: str
    positions: Mapping[Path_, tuple[int, int]] = field(default_factory=dict)
    """Field path -> (line, column), 1-based; empty where the format does not tell (JSON)."""

    def where(self, *location: str | int) -> Where:
        """Return the place of the field at `location`, or of its nearest known parent."""
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        for end in range(len(location), -1, -1):
            if location[:end] in self.positions:
                line, column = self.positions[location[:end]]
                return Where(path=self.path, line=line, column=column, field=dotted or None)
        return Where(path=self.path, field=dotted or None)


def read_bytes(path: Path, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return the content of a user's file.

    Raises
    ------
    InputError: if it is missing, a folder, not readable or too large to be a request.
    """
    where = Where(path=str(path))
    try:
        if path.is_dir():
            raise InputError("This is a folder, not a file.", hint="Give a YAML or JSON file.", where=where)
        if path.stat().st_size > max_bytes:
            size = path.stat().st_size
            raise InputError(
                f"The file has {size:,} bytes; more than {max_bytes:,} is another kind of file.", where=where
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("There is no such file.", hint="Check the path.", where=where) from error
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror}.", where=where) from error


def load_document(path: Path, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> Document:
    """Return the YAML or JSON document in `path`; told apart by content (JSON starts with a brace).

    Raises
    ------
    InputError: if the file cannot be read or parsed; names line and column.
    UnsupportedFormatError: if the file is not text.
    """
    content = read_bytes(path, max_bytes=max_bytes)
    return parse_document(content, name=str(path))


def parse_document(content: bytes, *, name: str) -> Document:
    """Return the parsed document; `name` stands in errors."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedFormatError(
            f"Byte {error.start} is not UTF-8: this is not a YAML or JSON text.", where=Where(path=name)
        ) from error
    if not text.strip():
        raise InputError("The file is empty.", hint="`gpuplan init` writes a request to start from.", where=Where(name))
    digest = hashlib.sha256(content).hexdigest()
    if text.lstrip().startswith(("{", "[")):
        return Document(data=_parse_json(text, name), path=name, sha256=digest)
    data, positions = _parse_yaml(text, name)
    return Document(data=data, path=name, sha256=digest, positions=positions)


def _unique_keys(pairs: Sequence[tuple[str, Any]], name: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"The key {repeated!r} appears twice in one object.", where=Where(path=name, field=repeated))
    return found


def _parse_json(text: str, name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    def reject_constant(constant: str) -> None:
        raise InputError(f"{constant} is not a number that can be planned with.", where=Where(path=name))

    try:
        return json.loads(
            text, object_pairs_hook=lambda pairs: _unique_keys(pairs, name), parse_constant=reject_constant
        )
    except json.JSONDecodeError as error:
        where = Where(path=name, line=error.lineno, column=error.colno)
        raise InputError(f"The JSON is broken: {error.msg}.", where=where) from error
    except RecursionError as error:
        raise InputError("The JSON is nested too deeply.", where=Where(path=name)) from error


def parse_json_values(text: str, name: str) -> tuple[tuple[Any, int], ...]:
    """Return the JSON values that stand one after the other in `text`, each with its 1-based line.

    NaN and Infinity are read as numbers: benchmarks write them, and only who uses a figure can tell whether it may be.

    Raises
    ------
    InputError: if a value is broken, with its place; if a key appears twice in one object.
    """
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique_keys(pairs, name))
    found: list[tuple[Any, int]] = []
    at = 0
    line, counted = 1, 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except InputError:
            raise  # it is a ValueError too
        except json.JSONDecodeError as error:
            where = Where(path=name, line=error.lineno, column=error.colno)
            raise InputError(f"The JSON is broken: {error.msg}.", where=where) from error
        except (RecursionError, ValueError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else "broken: a number has too many digits"
            raise InputError(f"The JSON is {why}.", where=Where(path=name, line=line)) from error
        found.append((value, line))
    return tuple(found)


def _parse_yaml(text: str, name: str) -> tuple[Any, dict[Path_, tuple[int, int]]]:
    from ruamel.yaml import YAML  # noqa: PLC0415 - a JSON request never pays for it
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415

    try:
        loaded = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Where(path=name, line=mark.line + 1, column=mark.column + 1) if mark else Where(path=name)
        problem = (error.problem or error.context or "cannot be parsed").split("\n")[0]
        raise InputError(f"The YAML is broken: {problem}.", where=where) from error
    except (YAMLError, ValueError, RecursionError) as error:
        summary = str(error).split("\n")[0]
        raise InputError(f"The YAML is broken: {summary}.", where=Where(path=name)) from error
    positions: dict[Path_, tuple[int, int]] = {}
    return _plain(loaded, (), positions, name), positions


def _plain(node: Any, at: Path_, positions: dict[Path_, tuple[int, int]], name: str) -> Any:  # noqa: ANN401
    """Return `node` as plain dicts, lists and scalars, noting the position of every field on the way."""
    if isinstance(node, dict):
        plain = {}
        for key, value in node.items():
            line, column = node.lc.key(key) if hasattr(node, "lc") else (0, 0)
            if not isinstance(key, str):
                where = Where(path=name, line=line + 1, column=column + 1)
                raise InputError(f"The key {key!r} is not text.", hint="Put it in quotes.", where=where)
            positions[(*at, key)] = (line + 1, column + 1)
            plain[key] = _plain(value, (*at, key), positions, name)
        return plain
    if isinstance(node, list):
        items = []
        for index, value in enumerate(node):
            if hasattr(node, "lc"):
                line, column = node.lc.item(index)
                positions[(*at, index)] = (line + 1, column + 1)
            items.append(_plain(value, (*at, index), positions, name))
        return items
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):  # ruamel's round-trip scalars subclass these
        if isinstance(node, kind):
            return kind(node)
    return str(node)


def closest(word: str, choices: Iterable[str], *, n: int = 3) -> list[str]:
    """Return the `choices` most like `word`, best first, ignoring case."""
    by_fold = {choice.casefold(): choice for choice in choices}
    return [by_fold[match] for match in difflib.get_close_matches(word.casefold(), by_fold, n=n, cutoff=0.6)]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return "Did you mean 'x' or 'y'?", or an empty text if nothing is close."""
    matches = closest(word, choices)
    return f"Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def validation_error(error: ValidationError, model: type[BaseModel], document: Document) -> InputError:
    """Return the first problem that pydantic found as one InputError with its line and a way out."""
    schemas = model.model_json_schema(by_alias=True).get("$defs", {})
    problems = [(_plain_location(problem["loc"], schemas), problem) for problem in error.errors(include_url=False)]
    start = problems[0][0]
    # A union reports one problem per branch: the one that got furthest into the document says most.
    location, first = max(
        (item for item in problems if item[0][: len(start)] == start),
        key=lambda item: len(item[0]),
        default=problems[0],
    )
    others = len({location for location, _ in problems if location[: len(start)] != start})
    more = f" ({others} more problem{'s' if others > 1 else ''} after this one.)" if others else ""
    where = document.where(*location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        hint = did_you_mean(str(location[-1]), known) or f"Known here: {', '.join(known)}."
        return InputError(f"Unknown key {location[-1]!r}.", hint=hint + more, where=where)
    if first["type"] == "missing":
        return InputError(f"The key {location[-1]!r} is missing.", hint=more.strip(), where=where)
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return InputError(inner.message, hint=inner.hint + more, where=where)
    message = f"{first['msg']}, not {_short(first['input'])}."
    return InputError(message, hint=more.strip(), where=where)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain_location(location: Path_, schemas: Container[str]) -> Path_:
    """Return pydantic's location without the parts that name a branch of a union rather than a field."""
    branches = ("function-", "list[", "tuple[", "dict[", "constrained-")
    return tuple(
        part for part in location if not (isinstance(part, str) and (part in schemas or part.startswith(branches)))
    )


def _known_keys(model: type[BaseModel], location: Path_) -> list[str]:
    """Return the keys of the model at `location` inside `model`, by walking its JSON Schema."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node or "anyOf" in node:
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[-1]]
            else:
                node = next((branch for branch in node["anyOf"] if "$ref" in branch or "items" in branch), {})
        return node

    node = resolve(schema)
    for part in location:
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = resolve(node if isinstance(node, dict) else {})
    return list(node.get("properties", {}))
