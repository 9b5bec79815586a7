"""Checked access to the fields of a model's config.json: a missing or wrong field is an InputError that names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from planner.errors import InputError, Where

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_INTEGER = 2**40
"""No dimension is larger; keeps products of dimensions finite."""
HINT = "Give the config.json that is published with the model's weights."


@dataclass(frozen=True, slots=True)
class Flag:
    """A boolean field and its value where the config leaves it out."""

    name: str
    default: bool = False


Setting: TypeAlias = bool | Flag
"""A constant, or the field that tells."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one config (or of its `text_config`), with the place that errors point to.

    A field that is null counts as absent. Where several names are given, the first one present is read.
    """

    values: Mapping[str, Any]
    path: str = ""
    prefix: str = ""

    def error(self, name: str, problem: str, *, hint: str = HINT) -> InputError:
        """Return an InputError about the field `name`."""
        return InputError(problem, hint=hint, where=Where(path=self.path or None, field=self.prefix + name))

    def has(self, name: str) -> bool:
        """Return whether the field is present and not null."""
        return self.values.get(name) is not None

    def optional_integer(self, *names: str, minimum: int = 1, maximum: int = MAX_INTEGER) -> int | None:
        """Return the first field present of `names`, or None.

        Raises
        ------
        InputError: if it is not a whole number from `minimum` to `maximum`.
        """
        name = next((name for name in names if self.has(name)), None)
        if name is None:
            return None
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            limits = f"at least {minimum}" if maximum == MAX_INTEGER else f"{minimum} to {maximum}"
            raise self.error(name, f"{name} must be a whole number of {limits}, not {value!r:.40}.")
        return value

    def integer(self, *names: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER) -> int:
        """Return the first field present of `names`, else `default`.

        Raises
        ------
        InputError: if it is not a whole number from `minimum` to `maximum`, or absent without a default.
        """
        value = self.optional_integer(*names, minimum=minimum, maximum=maximum)
        if value is None:
            value = default
        if value is None:
            others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
            raise self.error(names[0], f"The model's config has no {names[0]}{others}.")
        return value

    def flag(self, flag: Setting) -> bool:
        """Return a constant as it is, or the value of a boolean field.

        Raises
        ------
        InputError: if the field is neither true nor false.
        """
        if isinstance(flag, bool):
            return flag
        if not self.has(flag.name):
            return flag.default
        value = self.values[flag.name]
        if not isinstance(value, bool):
            raise self.error(flag.name, f"{flag.name} must be true or false, not {value!r}.")
        return value

    def text(self, name: str) -> str:
        """Return a text field, "" if absent.

        Raises
        ------
        InputError: if it is not text.
        """
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, f"{name} must be text, not {value!r}.")
        return value or ""

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return a nested object, {} if absent.

        Raises
        ------
        InputError: if it is not an object.
        """
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f"{name} must be an object, not {value!r}.")
        return value or {}

    def sequence(self, name: str, *, length: int | None = None) -> list[Any]:
        """Return a list field, [] if absent.

        Raises
        ------
        InputError: if it is not a list, or not of `length` entries (one per layer).
        """
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(name, f"{name} must be a list, not {value!r}.")
        if length is not None and len(value) != length:
            raise self.error(name, f"{name} has {len(value)} entries for {length} layers.")
        return value

    def child(self, name: str) -> Fields:
        """Return the fields of the nested object `name`."""
        return Fields(self.mapping(name), self.path, f"{self.prefix}{name}.")
