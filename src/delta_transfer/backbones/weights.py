"""Load weights into a network by matching names behind any prefix, or by order."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import state_tensors
from delta_transfer.backbones.weights_file import is_safetensors, read_weights
from delta_transfer.errors import ModelError, first_few

StateDicts = Mapping[str, Mapping[str, Tensor]]

# Published names -> the networks' names: dense layers and MLPs of vision transformers in
# torchvision; the networks for molecules of Hu et al.
_KEY_RENAMES: tuple[tuple[tuple[str, str], ...], ...] = (
    ((r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2"),),
    ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    (
        (r"\bx_embedding", "embedding.x_embedding"),
        (r"\bgnns\.", "layers."),
        (r"\bbatch_norms\.(\d+)\.", r"layers.\1.norm."),
    ),
)
# Of several copies of a network in one file, the average or the trained one is preferred.
_PREFERRED_COPIES = re.compile(r"(?:^|[._])(?:ema|teacher|encoder_q|online)(?=[._])")
_OTHER_COPIES = re.compile(r"(?:^|[._])(?:student|encoder_k|momentum|target)(?=[._])")
_POSITIONS = ("pos_embed", "pos_embedding")
_STATISTICS = ("running_mean", "running_var")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Match:
    """An assignment of a file's tensors to a network's.

    Args:
        tensors: name in the network -> tensor.
        used: their names in the file.
        how: description, for the summary.
        prefix: prefix of the network's names in the file.
    """

    tensors: dict[str, Tensor]
    used: frozenset[str]
    how: str
    prefix: str


def load_weights(module: nn.Module, path: str | Path, *, head: str, name: str) -> str:
    """Load a file of weights into a network, except its head.

    Args:
        module: the network; changed in place, or not at all if the file does not fit.
        path: safetensors, or a state dict, alone or in a checkpoint.
        head: name of the head, which is not changed.
        name: the network, as the user named it.

    Returns:
        A summary: how many tensors matched, which are missing and which are unused.

    Raises:
        ModelError: if the file cannot be read, or does not fit the network.
    """
    return load_tensors(
        module,
        read_weights(path),
        head=head,
        name=name,
        weights_name=f"weights {path}",
        ordered=not is_safetensors(path),
    )


def load_tensors(
    module: nn.Module,
    groups: StateDicts,
    *,
    head: str,
    name: str,
    weights_name: str,
    ordered: bool = False,
) -> str:
    """Load tensors into a network, except its head; see `load_weights`.

    All parameters and batch-norm statistics must be there, with equal shapes: under the network's
    names behind any prefix, or, if ordered, in the same order under names with the same ends.

    Args:
        module: the network.
        groups: state dicts, as `read_weights` returns them.
        head: name of the head.
        name: the network, as the user named it.
        weights_name: description of the tensors, for messages.
        ordered: the tensors are in the order of their network.

    Raises:
        ModelError: if they do not fit.
    """
    own = {n: t for n, t in state_tensors(module).items() if not n.startswith(f"{head}.")}
    needed = [name for name in _needed(module) if name in own]
    flat = {where + key: tensor for where, group in groups.items() for key, tensor in group.items()}
    match = _by_name(own, needed, flat, weights_name)
    if any(name not in match.tensors for name in needed):
        other = _by_order(module, groups, head) if ordered else None
        if other is None:
            raise _mismatch_error(match, own, needed, flat, name=name, weights_name=weights_name)
        match = other
    match = dataclasses.replace(
        match, tensors={name: tensor.to(own[name].dtype) for name, tensor in match.tensors.items()}
    )
    broken = [name for name in needed if not bool(torch.isfinite(match.tensors[name]).all())]
    if broken:
        raise ModelError(
            f"{weights_name}: values of {first_few(broken)} are not finite, probably because "
            "training diverged: use another file"
        )
    copy_tensors(module, match.tensors)
    return _summary(match, own, flat, weights_name)


def copy_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a network by name; `load_state_dict` requires versions of some modules."""
    own = state_tensors(module)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _needed(module: nn.Module) -> list[str]:
    """Return the names of parameters and batch-norm statistics, which a file must have."""
    names = [name for name, _ in module.named_parameters()]
    buffers = [name for name, _ in module.named_buffers()]
    return names + [name for name in buffers if name.rpartition(".")[2] in _STATISTICS]


def _by_name(
    own: Mapping[str, Tensor], needed: Sequence[str], flat: Mapping[str, Tensor], weights_name: str
) -> _Match:
    """Match the names behind the prefix with most of the needed tensors, with equal shapes."""
    found: dict[str, dict[str, str]] = {}
    for renames in ((), *_KEY_RENAMES):
        keys = {_rename(key, renames): key for key in flat}
        for prefix, files in _prefixes(own, flat, keys).items():
            if prefix not in found or len(files) > len(found[prefix]):
                found[prefix] = files
    counts = {prefix: len(files.keys() & set(needed)) for prefix, files in found.items()}
    most = max(counts.values(), default=0)
    best = {prefix: files for prefix, files in found.items() if counts[prefix] == most}
    prefix = max(best, key=_rank, default="")
    files = best.get(prefix, {})
    if most == len(needed):
        _check_single(prefix, best, flat, weights_name)
    return _Match(
        tensors={name: flat[file] for name, file in files.items()},
        used=frozenset(files.values()),
        how=f" under '{prefix}'" if prefix else "",
        prefix=prefix,
    )


def _prefixes(
    own: Mapping[str, Tensor], flat: Mapping[str, Tensor], keys: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Return prefix -> network's name behind it, with equal shapes -> file's name."""
    found: dict[str, dict[str, str]] = {}
    for key, file in keys.items():
        for start in [0, *(dot.end() for dot in re.finditer(r"\.", key))]:
            name = key[start:]
            if name in own and _fits(flat[file], own[name]):
                found.setdefault(key[:start], {})[name] = file
    return found


def _rank(prefix: str) -> int:
    return len(_PREFERRED_COPIES.findall(prefix)) - len(_OTHER_COPIES.findall(prefix))


def _check_single(
    chosen: str,
    best: Mapping[str, Mapping[str, str]],
    flat: Mapping[str, Tensor],
    weights_name: str,
) -> None:
    """Raise ModelError if copies of the network differ and none is known to be preferred."""
    for other in best:
        if other == chosen or _rank(other) < _rank(chosen):
            continue
        shared = best[chosen].keys() & best[other].keys()
        pairs = ((flat[best[chosen][name]], flat[best[other][name]]) for name in shared)
        if not all(torch.equal(*pair) for pair in pairs):
            raise ModelError(
                f"{weights_name}: the file has several copies of the network, under '{chosen}' and "
                f"'{other}': save one of them alone, and use that file"
            )


def _by_order(module: nn.Module, groups: StateDicts, head: str) -> _Match | None:
    """Match a state dict with the network's tensors in order and shape, under other names."""
    for where, group in groups.items():
        tensors = _in_order(group, module, head)
        if tensors is None:
            continue
        same = {id(tensor) for tensor in tensors.values()}
        return _Match(
            tensors=tensors,
            used=frozenset(where + key for key, tensor in group.items() if id(tensor) in same),
            how=" by their order and shapes, under other names",
            prefix=where,
        )
    return None


def _in_order(
    state: Mapping[str, Tensor], module: nn.Module, head: str
) -> dict[str, Tensor] | None:
    """Return the tensors by the network's names, if ends of names and shapes fit."""
    own = state_tensors(module)
    body = [name for name in own if not name.startswith(f"{head}.")]
    names = list(own) if len(own) == len(state) else body
    if len(names) != len(state):
        return None
    for name, (key, tensor) in zip(names, state.items(), strict=True):
        # Otherwise neighbours of one shape, such as scale and shift, could be swapped.
        alike = name.rpartition(".")[2] == key.rpartition(".")[2]
        # Heads may differ in their outputs, not in their inputs.
        start = int(name.startswith(f"{head}."))
        same_shape = tensor.ndim == own[name].ndim and (
            tensor.shape[start:] == own[name].shape[start:]
        )
        same_kind = tensor.is_floating_point() == own[name].is_floating_point()
        if not (alike and same_shape and same_kind):
            return None
    found = dict(zip(names, state.values(), strict=True))
    return {name: found[name] for name in body}


def _rename(key: str, renames: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _fits(tensor: Tensor, own: Tensor) -> bool:
    same_kind = tensor.is_floating_point() == own.is_floating_point()
    return same_kind and tensor.shape == own.shape


def _mismatch_error(
    match: _Match,
    own: Mapping[str, Tensor],
    needed: Sequence[str],
    flat: Mapping[str, Tensor],
    *,
    name: str,
    weights_name: str,
) -> ModelError:
    missing = [name for name in needed if name not in match.tensors]
    other = [name for name in missing if match.prefix + name in flat]
    absent = [name for name in missing if match.prefix + name not in flat]
    shapes = [
        f"{name} is {tuple(own[name].shape)} in the network and "
        f"{tuple(flat[match.prefix + name].shape)} in the file"
        for name in other[:3]
    ]
    reasons = "; ".join([*shapes, *([f"not in the file: {first_few(absent)}"] if absent else [])])
    if not match.tensors:
        reasons += f"; the file has {first_few(list(flat))}"
    hint = "use the `model` of the file, or another file (`weights`)"
    if all(name.rpartition(".")[2] in _POSITIONS for name in missing):
        hint = "it is for images of another size: leave out `image_size`"
    count = len(needed) - len(missing)
    return ModelError(
        f"{weights_name}: the file does not fit {name}: {count} of {len(needed)} tensors match "
        f"({reasons}); {hint}"
    )


def _summary(
    match: _Match, own: Mapping[str, Tensor], flat: Mapping[str, Tensor], weights_name: str
) -> str:
    text = f"{weights_name}: {len(match.tensors)} of {len(own)} tensors matched{match.how}"
    absent = [name for name in own if name not in match.tensors]
    # Tensors under the same prefix first, such as the file's head.
    unused = sorted(
        (key for key in flat if key not in match.used),
        key=lambda key: not key.startswith(match.prefix),
    )
    text += f"; not in the file: {first_few(absent)}" if absent else ""
    return text + (f"; not used: {first_few(unused)}" if unused else "")
