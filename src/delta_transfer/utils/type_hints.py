"""Checks and descriptions of option values by their type hints."""

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


def matches_type(value: object, hint: Any) -> bool:
    """Return True if a value fits a type hint; integers are numbers, booleans are not.

    Args:
        value: any value.
        hint: a plain type, a `Literal`, or a union of these.

    Example:
        >>> matches_type(3, float), matches_type(True, int), matches_type(None, int | None)
        (True, False, True)
    """
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in _UNIONS:
        return any(matches_type(value, part) for part in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (isinstance(value, int) and hint is float)


def describe_type(hint: Any) -> str:
    """Describe a type hint, as text to follow "must be"; None is left out.

    Example:
        >>> describe_type(Literal["a", "b"] | None), describe_type(float | Literal["auto"])
        ('one of a, b', 'a number or auto')
    """
    if hint in _PLAIN:
        return _PLAIN[hint]
    if typing.get_origin(hint) is Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if typing.get_origin(hint) in _UNIONS:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return " or ".join(map(describe_type, parts))
    return "a list" if typing.get_origin(hint) is tuple else "a mapping"
