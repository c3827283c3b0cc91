"""The frozen source network: its features of a batch, computed as cheaply as possible."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from delta_transfer.errors import ConfigError
from delta_transfer.features.fuse_batch_norm import fuse_batch_norm
from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.features.stages import output_module
from delta_transfer.features.taps import Taps, exclude_from_compile
from delta_transfer.functional import without_autocast
from delta_transfer.utils.module_state import device_of, eval_mode

GIB = 2**30


class FeatureCache:
    """A cache of features by the values of samples: a sample that differs by a bit is another.

    The key of a sample is two sums of its 32-bit words times random 64-bit numbers, modulo 2^64:
    two samples that differ have the same one with a probability below 2^-60. Once the limit is
    reached nothing is added or evicted: all samples recur once an epoch, so that evicting some for
    others would not save more.

    Args:
        gib: maximum memory in GiB, on the device of the features.

    Example:
        >>> cache = FeatureCache(1.0)
        >>> keys = cache.keys(torch.tensor([[1.0], [2.0], [1.0]]))
        >>> keys[0] == keys[2] != keys[1]
        True
        >>> cache.put(keys[:1], [torch.ones(1, 4)])
        >>> cache.has(keys[0]), cache.has(keys[1])
        (True, False)
    """

    def __init__(self, gib: float) -> None:
        self._left = int(gib * GIB)
        self._rows: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._factors = torch.empty(2, 0, dtype=torch.int64)

    def keys(self, inputs: Tensor) -> list[tuple[int, int]]:
        """Return a key for each of the samples `[B, ...]`."""
        rows = inputs.detach().contiguous().flatten(1)
        words = (rows if rows.element_size() % 4 == 0 else rows.float()).view(torch.int32)
        sums = [(words * f).sum(dim=1) for f in self._drawn(words.shape[1], words.device)]
        return [(a, b) for a, b in torch.stack(sums, dim=1).tolist()]

    def has(self, key: tuple[int, int]) -> bool:
        """Return True if the sample's features are cached."""
        return key in self._rows

    def put(self, keys: Sequence[tuple[int, int]], features: Sequence[Tensor]) -> None:
        """Cache features, each `[B, ...]`, of the samples with these keys, as far as they fit."""
        size = sum(part[0].numel() * part.element_size() for part in features)
        for i, key in enumerate(keys):
            if key not in self._rows and size <= self._left:
                self._rows[key] = tuple(part[i].detach().clone() for part in features)
                self._left -= size

    def get(self, keys: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the cached features of these samples, each `[B, ...]`."""
        return [
            torch.stack(parts) for parts in zip(*map(self._rows.__getitem__, keys), strict=True)
        ]

    def _drawn(self, count: int, device: torch.device) -> Tensor:
        if self._factors.shape[1] != count or self._factors.device != device:
            generator = torch.Generator().manual_seed(0)
            low, high = -(2**63), 2**63 - 1
            self._factors = torch.randint(low, high, (2, count), generator=generator).to(device)
        return self._factors


_TRIED = 2  # samples on which a fused copy is tried


class FrozenSource:
    """Run the source without gradients, in eval mode, no further than needed.

    Between `open` and `close` it is a copy that runs, with batch norm fused into convolutions.

    Args:
        network: the source, unwrapped; not changed.
        taps: the modules whose features are needed.
        heads: the modules whose inputs are needed.
        cache_gb: GiB of features to cache for recurring inputs; 0 disables the cache.
        precision: precision between `open` and `close`, outside of autocast.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        heads: Sequence[str],
        cache_gb: float,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.network = network
        self._taps = tuple(taps)
        self._heads = tuple(heads)
        self._gib = cache_gb
        self._half = precision == "bfloat16"
        self._open = False
        self._cache: FeatureCache | None = None
        self._recorder = _Recorder(network, taps=self._taps, heads=self._heads)
        self._copied: _Recorder | None = None

    def open(self) -> None:
        """Start a phase in which its weights do not change."""
        self._open = True
        self._cache = FeatureCache(self._gib) if self._gib else None

    def close(self) -> None:
        """Release the copy and the cache."""
        self._open, self._copied, self._cache = False, None, None

    def run(self, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return its features at the taps (`[B, S, C]`, or rows), and the inputs of its heads.

        Raises:
            ConfigError: if features are to be cached that are not of one sample each.
        """
        if not self._taps and not self._heads:
            return {}, {}
        if self._cache is None:
            return self._run(inputs)
        return self._run_cached(inputs, self._cache)

    def _run_cached(
        self, inputs: Any, cache: FeatureCache
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                f"source_cache_gb: inputs must be a tensor of samples, got {type(inputs).__name__}"
            )
        keys = cache.keys(inputs)
        if not all(cache.has(key) for key in keys):
            features, given = self._run(inputs)
            parts = [*features.values(), *given.values()]
            if any(len(part) != len(keys) for part in parts):
                raise ConfigError(
                    "source_cache_gb: the features are not of one sample each; leave it out"
                )
            cache.put(keys, parts)
            return features, given
        parts = cache.get(keys)
        taps = dict(zip(self._taps, parts, strict=False))
        return taps, dict(zip(self._heads, parts[len(taps) :], strict=True))

    def _run(self, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        device = inputs.device if isinstance(inputs, Tensor) else device_of(self.network)
        if not self._open or not _may_use_copy(device):
            return self._recorder.run(inputs)
        if not isinstance(inputs, Tensor):
            return self._run_in_precision(self._recorder, inputs, device)
        if self._copied is None:
            self._copied = exclude_from_compile(self._fuse)(inputs[:_TRIED])
        return self._run_in_precision(self._copied, inputs, device)

    def _run_in_precision(
        self, recorder: "_Recorder", inputs: Any, device: torch.device
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not self._half:
            return recorder.run(inputs)
        with torch.autocast(device.type, torch.bfloat16):
            features, given = recorder.run(inputs)
        return _to_float32(features), _to_float32(given)

    def _fuse(self, inputs: Tensor) -> "_Recorder":
        # A fused layer returns something else, or is replaced by another module.
        kept = {self.network.get_submodule(name) for name in (*self._taps, *self._heads)}
        kept |= {output_module(module) for module in kept}
        with without_autocast(inputs.device):
            network = fuse_batch_norm(self.network, inputs, self._outputs, keep=kept)
        return _Recorder(network, taps=self._taps, heads=self._heads)

    def _outputs(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        features, given = _Recorder(network, taps=self._taps, heads=self._heads).run(inputs)
        return [*features.values(), *given.values()]


def _to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert bfloat16 tensors to float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        for name, tensor in tensors.items()
    }


def _may_use_copy(device: torch.device) -> bool:
    """Return True if a fused copy may run instead of the network.

    Not under autocast, where it has to round as the target does, nor on the meta device, where the
    copy cannot be compared.
    """
    kind = device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return kind != "meta" and not autocast


class _Recorder:
    """A network with the hooks that record its features and head inputs."""

    def __init__(self, network: nn.Module, *, taps: Sequence[str], heads: Sequence[str]) -> None:
        self._network = network
        self._taps = Taps(network, taps) if taps else None
        self._heads = HeadInputs(network, heads)

    def run(self, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        network, taps = self._network, self._taps
        with taps or nullcontext(), self._heads as heads, eval_mode(network), torch.no_grad():
            if taps is None or heads.names:
                network(inputs)
            else:
                taps.record(inputs)
            features = {} if taps is None else taps.features()
            if taps is not None:
                taps.clear()
            return features, heads.inputs()
