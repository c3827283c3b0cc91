"""Check and convert the value of an option by its type, and describe what is allowed."""

import contextlib
import dataclasses
import math
import types
import typing
from typing import Any, Literal

_UNIONS = (typing.Union, types.UnionType)

_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """The range of a number, for `Annotated`; a bound that is None does not limit.

    Args:
        at_least: smallest allowed value.
        at_most: largest allowed value.
        above: value below the allowed ones.
        below: value above the allowed ones.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def contains(self, value: float) -> bool:
        """Return whether a number is finite and in the range."""
        return (
            _is_finite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Return the range in words, for example "above 0 and below 1"."""
        words = {
            name.replace("_", " "): bound
            for name, bound in dataclasses.asdict(self).items()
            if bound is not None
        }
        return " and ".join(f"{name} {bound}" for name, bound in sorted(words.items()))


def matches_type(value: object, hint: Any) -> bool:
    """Return whether a value has a type: an `int` is a `float`, a `bool` or NaN is neither.

    Args:
        value: any value.
        hint: a plain type, `Literal`, `Annotated` with `Bounds`, or a union of these.

    Example:
        >>> matches_type(3, float), matches_type(True, int), matches_type(None, int | None)
        (True, False, True)
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return matches_type(value, parts[0]) and all(b.contains(value) for b in parts[1:])
    if origin is Literal:
        return not isinstance(value, bool) and value in parts
    if origin in _UNIONS:
        return any(matches_type(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(matches_type(item, parts[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, float) and math.isnan(value):
        return False
    return isinstance(value, hint) or (
        isinstance(value, int) and hint is float and _is_finite(value)
    )


def _is_finite(value: float) -> bool:
    """Return whether a number is finite as a `float`, which large integers are not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def convert(value: object, hint: Any) -> Any:
    """Return the value of an option that was written in a shell or in a YAML file.

    A value of the type is returned as it is, text is read as a number where a number is wanted,
    and a number as text where text is (`test_split: 0.2`).

    Raises:
        ValueError: if the value is not of the type.

    Example:
        >>> convert("3e-4", float | Literal["find"]), convert(16, Literal["16", "32"])
        (0.0003, '16')
    """
    if matches_type(value, hint):
        return value
    candidates: list[object] = []
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                candidates.append(kind(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        candidates.append(str(value))
    for candidate in reversed(candidates):  # "3" is 3.0 where both int and float would do
        if matches_type(candidate, hint):
            return candidate
    raise ValueError(f"must be {describe_type(hint)}")


def describe_type(hint: Any) -> str:
    """Return the values that a type allows, in words; that it may be None is not said.

    Example:
        >>> describe_type(Literal["a", "b"] | None), describe_type(float | Literal["auto"])
        ('one of a, b', 'a number or auto')
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is typing.Annotated:
        return f"{describe_type(parts[0])} ({', '.join(map(str, parts[1:]))})"
    if origin is Literal:
        choices = [str(choice) for choice in parts]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin in _UNIONS:
        return " or ".join(describe_type(part) for part in parts if part is not type(None))
    return "a list" if origin is tuple else "a mapping"


def describe_placeholder(hint: Any) -> str:
    """Return the word for a value in a help text: its choices, or N, X or TEXT.

    Example:
        >>> describe_placeholder(Literal["a", "b"]), describe_placeholder(float | Literal["auto"])
        ('a|b', 'X|auto')
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin is typing.Annotated:
        return describe_placeholder(parts[0])
    if origin in _UNIONS:
        return "|".join(describe_placeholder(part) for part in parts if part is not type(None))
    return {int: "N", float: "X", str: "TEXT"}[hint]
