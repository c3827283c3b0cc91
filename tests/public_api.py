"""The public names and how they are called, as text: `python -m tests.public_api` keeps it."""

import inspect
from pathlib import Path

import delta_transfer

WRITTEN = Path(__file__).with_suffix(".txt")
HEADING = (
    "# What people may build on: every public name, what it is called with, and its own members.\n"
    "# Written by `python -m tests.public_api`; a change here is one for CHANGELOG.md.\n"
)


def described() -> str:
    """All public names, one after the other in the order of the alphabet."""
    parts = [_described(name) for name in sorted(delta_transfer.__all__)]
    return "\n".join([HEADING, *parts])


def _described(name: str) -> str:
    public = getattr(delta_transfer, name)
    if not inspect.isclass(public):
        return _called(name, public)
    ours = [base.__name__ for base in public.__mro__[1:] if _is_ours(base)]
    text = _called(f"class {name}", public)
    text += f"    is a {', '.join(ours)}\n" if ours else ""
    return text + "".join(_members(public))


def _called(name: str, public: object) -> str:
    """What something is called with, a parameter a line where there are several."""
    if inspect.isclass(public) and not _is_ours(_that_has(public, "__init__")):
        return f"{name}\n"  # as Python has it, whose signatures are other ones in each version
    signature = inspect.signature(public)
    parameters = [_plain(one) for one in signature.parameters.values() if one.name != "self"]
    if len(parameters) < 4:
        plain = signature.replace(parameters=parameters, return_annotation=signature.empty)
        return f"{name}{plain}\n"
    lines = [str(parameter) for parameter in parameters]
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if positional := kinds.count(inspect.Parameter.POSITIONAL_ONLY):
        lines.insert(positional, "/")
    return "\n".join([f"{name}(", *(f"        {line}," for line in lines), "    )\n"])


class _Named:
    """A default that is a function or class, by its name: its repr has an address."""

    def __init__(self, named: object) -> None:
        self.name = getattr(named, "__name__", str(named))

    def __repr__(self) -> str:
        return self.name


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its type, which `make check` holds."""
    default = parameter.default
    if default is not parameter.empty and callable(default):
        default = _Named(default)
    return parameter.replace(annotation=parameter.empty, default=default)


def _members(public: type) -> list[str]:
    """The methods, properties and constants; the fields of a dataclass are its parameters."""
    lines = []
    fields = set(getattr(public, "__dataclass_fields__", ()))
    found = {name for base in public.__mro__ if _is_ours(base) for name in vars(base)}
    for name in sorted(name for name in found - fields if not name.startswith("_")):
        member = inspect.getattr_static(public, name)
        if isinstance(member, property):
            lines.append(f"    .{name} (property)\n")
        elif isinstance(member, classmethod | staticmethod):
            called = _called(name, getattr(public, name)).rstrip()
            lines.append(f"    .{called} ({type(member).__name__})\n")
        elif inspect.isfunction(member):
            lines.append(f"    .{_called(name, member)}")
        else:
            lines.append(f"    .{name}\n")
    return lines


def _that_has(public: type, name: str) -> type:
    return next(base for base in public.__mro__ if name in vars(base))


def _is_ours(base: type) -> bool:
    return base.__module__.partition(".")[0] == "delta_transfer"


if __name__ == "__main__":
    WRITTEN.write_text(described(), encoding="utf-8")
