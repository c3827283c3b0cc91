"""Compare the outputs of an exported and the original network on real samples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import PROVIDERS, load_data
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError
from delta_transfer.inference.fault_tolerant_loader import fault_tolerant_loader
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.training.loaders import Dataloaders

_MAX_SAMPLES = 50
_BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationSamples:
    """Samples to compare networks on.

    Args:
        batches: inputs of the network; the first batch has one sample, others several.
        description: description of the samples, for messages.
    """

    batches: Sequence[Any]
    description: str


def find_samples(config: TrainConfig, spec: InputSpec | GraphSpec) -> VerificationSamples:
    """Return samples of the data of a run, from the test split if it has one.

    If the data is missing, unreadable, or might have to be downloaded, the images of scikit-image
    or a graph of two nodes are used instead.

    Args:
        config: options of the run.
        spec: the inputs of its network.
    """
    split = _own_samples(config)
    batches = [] if split is None else _read(split, spec, config)
    count = sum(map(len, batches))
    if split is not None and count > 1:
        return VerificationSamples(
            batches=_alone_first(batches),
            description=f"{count} {split.sample_type}s of {config.data}",
        )
    instead = f"not of {config.data}, which is not available"
    if isinstance(spec, GraphSpec):
        return VerificationSamples(
            batches=[spec.example()], description=f"a graph of two nodes, {instead}"
        )
    patches = load_data("skimage/patches", seed=0)
    batches = _read(patches.train, spec, config)
    description = f"{sum(map(len, batches))} images of skimage/patches, {instead}"
    return VerificationSamples(batches=_alone_first(batches), description=description)


def compare_outputs(
    reference: Callable[[Any], Tensor], exported: Callable[[Any], Tensor], batches: Sequence[Any]
) -> tuple[float, float]:
    """Return the largest difference of two networks' outputs, and the first's largest output.

    The difference is NaN if an output is NaN.
    """
    differences, sizes = [], []
    with torch.no_grad():
        for inputs in batches:
            outputs = reference(inputs)
            differences.append((outputs - exported(inputs)).abs().max())
            sizes.append(outputs.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(sizes).max())


def _own_samples(config: TrainConfig) -> Split | None:
    if config.data.startswith(tuple(PROVIDERS)):
        return None
    try:
        task = find_data(config)
    except (UserError, OSError):
        return None
    return task.train if task.test is None else task.test


def _read(split: Split, spec: InputSpec | GraphSpec, config: TrainConfig) -> list[Any]:
    """Load evenly spaced samples of a split in batches, without unreadable ones."""
    count = min(_MAX_SAMPLES, len(split))
    some = split.subset(number * len(split) // count for number in range(count))
    options = dataclasses.replace(
        config, batch_size=_BATCH_SIZE, gradient_accumulation_steps=1, num_workers=0
    )
    loaders = Dataloaders(spec, options, torch.device("cpu"))
    loader = fault_tolerant_loader(loaders.eval_dataloader(some))
    return [inputs for inputs, _ in loader if len(inputs)]


def _alone_first(batches: Sequence[Any]) -> list[Any]:
    return [batches[0][:1], *batches]
