"""Channel attention: how much each channel of each tap matters, and its file."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from delta_transfer.errors import UserError
from delta_transfer.files import fingerprint, write_atomically
from delta_transfer.functional import at_least_float32, normalize_scores

VARIANCE_FLOOR = 1e-6
_ABOUT = "delta-transfer"  # the entry of the metadata that describes the tensors
_FORMAT = "delta-transfer channel attention 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelAttention:
    """Scores, attention and feature variance per tap, and what they were made from.

    Args:
        scores: tap -> `[C]`, how much the mean task loss grows when the channel is switched off.
        variance: tap -> scalar `v`, the mean over channels of the source's variance over samples
            and positions, in squared units of the features.
        temperature: of the softmax that turns scores into attention.
        method: the estimator, `"gradient"` or `"exact"`.
        samples: how many pictures the scores are averaged over.
        source: fingerprint of the source network's weights (`weights_fingerprint`).
        data: fingerprint of the pictures and their preprocessing, None where it is not known.
    """

    scores: dict[str, Tensor]
    variance: dict[str, Tensor]
    temperature: float
    method: str
    samples: int
    source: str
    data: str | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps."""
        return tuple(self.scores)

    @property
    def attention(self) -> dict[str, Tensor]:
        """Tap -> `[C]`, sums to 1."""
        return {
            tap: normalize_scores(scores, temperature=self.temperature)
            for tap, scores in self.scores.items()
        }

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {f"scores/{tap}": scores for tap, scores in self.scores.items()}
        tensors |= {f"variance/{tap}": variance for tap, variance in self.variance.items()}
        # For readers of the file that do not have this package.
        tensors |= {f"attention/{tap}": attention for tap, attention in self.attention.items()}
        about = {
            "format": _FORMAT,
            "taps": self.taps,
            "temperature": self.temperature,
            "method": self.method,
            "samples": self.samples,
            "source": self.source,
            "data": self.data,
        }
        # One entry: safetensors writes several in random order, and equal runs give equal bytes.
        metadata = {_ABOUT: json.dumps(about)}
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(Path(path), save(contiguous, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "ChannelAttention":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing or is no channel attention.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no channel attention at {path}: there is no such file")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no safetensors file: {error}") from error
        if about.get("format") != _FORMAT:
            raise UserError(
                f"{path} holds no channel attention (its format is {about.get('format')!r}): "
                "give an attention.safetensors that a run wrote"
            )
        taps = about["taps"]
        return cls(
            scores={tap: tensors[f"scores/{tap}"] for tap in taps},
            variance={tap: tensors[f"variance/{tap}"] for tap in taps},
            temperature=about["temperature"],
            method=about["method"],
            samples=about["samples"],
            source=about["source"],
            data=about.get("data"),
        )


class FeatureVariance:
    """The mean over channels of the variance over samples and positions, batch by batch.

    In float32 without the cancellation of `E[x^2] - E[x]^2`: moments of batches are merged (Chan et
    al. 1983).

    Example:
        >>> variance = FeatureVariance()
        >>> variance.update(torch.tensor([[0.0], [2.0]]))
        >>> variance.compute()
        tensor(1.)
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, features: Tensor) -> None:
        """Takes in features `[..., C]`."""
        rows = at_least_float32(features.detach()).flatten(0, -2)
        count, mean = len(rows), rows.mean(dim=0)
        squares = (rows - mean).square().sum(dim=0)
        if self._count:
            total = self._count + count
            shift = mean - self._mean
            squares = squares + self._squares + shift.square() * (self._count * count / total)
            mean = self._mean + shift * (count / total)
        self._count += count
        self._mean, self._squares = mean, squares

    def compute(self) -> Tensor:
        """Scalar, not below 1e-6, so that a tap that is constant does not divide by zero."""
        if self._count == 0:
            raise ValueError("no features were given: the loader is empty")
        return (self._squares / self._count).mean().clamp_min(VARIANCE_FLOOR)


def weights_fingerprint(model: nn.Module, *, head: str) -> str:
    """SHA-256 of a network's parameters and buffers, those of its head left out."""
    state = model.state_dict()
    chunks: list[bytes | memoryview] = []
    for name in sorted(state):
        if name != head and not name.startswith(f"{head}."):
            tensor = state[name].detach().cpu().contiguous()
            chunks += [name.encode(), memoryview(tensor.flatten().view(torch.uint8).numpy())]
    return fingerprint(chunks)
