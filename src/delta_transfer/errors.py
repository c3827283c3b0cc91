"""User-facing errors, with suggestions for fixing them."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """The user's input is wrong: base class of all errors that a user can fix.

    The message names the offending value, what is allowed and the fix. The command line ends with
    exit code 2 and no traceback.
    """


class ConfigError(UserError):
    """An option or argument is wrong, or conflicts with another one."""


class DataError(UserError):
    """The data is missing, unreadable or not in a shape that can be trained on."""


class ModelError(UserError):
    """A network, its weights or the files of a saved run are missing or do not fit."""


class EnvironmentError(UserError):
    """A package, device, network connection or disk space is missing on this machine."""


def reworded(error: UserError, message: str) -> UserError:
    """Return an error of the same kind with another message.

    Subclasses of a kind may have constructors of their own, so that the kind itself is made.

    Example:
        >>> reworded(DataError("no images"), "no images in pets: add some")
        DataError('no images in pets: add some')
    """
    kinds = (ConfigError, DataError, ModelError, EnvironmentError, UserError)
    return next(kind for kind in kinds if isinstance(error, kind))(message)


def as_flags(message: str) -> str:
    """Return a message of the library with its arguments spelt as command-line flags.

    The library names an argument as Python code between backticks, with its value if it helps:
    `` `val_fraction=1.5`: must be below 1 ``. The command line shows such messages through this
    function, so that no library function has to know of flags.

    Example:
        >>> as_flags("`val_fraction=1.5`: must be below 1, or leave `test_split` out")
        '--val-fraction 1.5: must be below 1, or leave --test-split out'
    """
    return re.sub(r"`([a-z]\w*)(?:=([^`]*))?`", _flag, message)


def _flag(argument: re.Match[str]) -> str:
    name, value = argument.groups()
    flag = f"--{name.replace('_', '-')}"
    return flag if value in (None, "True") else f"{flag} {value}"


def first_few(items: Sequence[str], limit: int = 5) -> str:
    """Return the first few items as text, and the number of others.

    Example:
        >>> first_few(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def near(name: str, choices: Iterable[str], *, limit: int = 5) -> list[str]:
    """Return the choices most similar to `name`, best first; all choices if they are few."""
    choices = list(choices)
    if len(choices) <= 2 * limit:
        return choices
    # A misspelt path of a module often has only its last or first part right.
    tail = name.rsplit(".", 1)[-1]
    found = difflib.get_close_matches(name, choices, n=limit, cutoff=0.6)
    found += [choice for choice in choices if tail and tail in choice and choice not in found]
    return found[:limit]


def unknown(kind: str, name: str, choices: Sequence[str]) -> ConfigError:
    """Return an error for a name that is not one of the choices, with similar ones listed."""
    similar = near(name, choices)
    if not similar:
        hint = f"there are {len(choices)}, for example {', '.join(choices[:5])}"
    elif len(similar) == len(choices):
        hint = f"choose from {', '.join(similar)}"
    else:
        hint = f"did you mean {', '.join(similar)}?"
    return ConfigError(f"unknown {kind} {name!r}: {hint}")


def match_names(kind: str, patterns: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return the choices selected by names or glob patterns, in that order, without repetitions.

    Args:
        kind: the kind of choice, for the message ("tap", "module").
        patterns: exact names, or patterns with `*`, `?` or `[...]`.
        choices: all names.

    Raises:
        ConfigError: if a pattern selects nothing.

    Example:
        >>> match_names("tap", ["layer?"], ["stem", "layer1", "layer2"])
        ['layer1', 'layer2']
    """
    selected: dict[str, None] = {}
    known = set(choices)
    for pattern in patterns:
        if pattern in known:
            hits = [pattern]
        else:
            hits = [choice for choice in choices if fnmatch.fnmatchcase(choice, pattern)]
        if not hits:
            raise unknown(kind, pattern, choices)
        selected.update(dict.fromkeys(hits))
    return list(selected)
