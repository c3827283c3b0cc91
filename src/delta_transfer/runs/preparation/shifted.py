"""The second folder of images, `shifted`, that the final network is tested on."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.scanning import ImageScan, scan_images
from delta_transfer.data.sources.folder import load_labelled_folder
from delta_transfer.data.splits import DEFAULT_TEST_SPLIT
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.errors import ConfigError, DataError, UserError, first_few, reworded
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.training.loaders import count_workers
from delta_transfer.utils.devices import cpu_count
from delta_transfer.utils.paths import user_path


def load_shifted(config: TrainConfig, task: TaskData) -> Split | None:
    """Return the images of `shifted`, labelled with the classes of a dataset; None without.

    Args:
        config: the options.
        task: the dataset. Classes of it may be missing in the folder.

    Raises:
        UserError: if the dataset has no images with classes, or the folder is invalid or has other
            classes; no image is read.
    """
    if config.shifted is None:
        return None
    option = f"`shifted={config.shifted}`"
    if task.kind != "images" or not isinstance(task.task_type, Multiclass):
        kind = (
            "" if isinstance(task.task_type, Multiclass) else f" with {task.task_type.target_kind}"
        )
        raise ConfigError(
            f"{option}: only for images with classes, but {task.name} has "
            f"{task.sample_type}s{kind}; leave the option out"
        )
    try:
        folder = user_path(config.shifted)
        classes, split, _ = load_labelled_folder(folder, test_split=DEFAULT_TEST_SPLIT)
    except UserError as error:
        raise reworded(error, f"{option}: {error}") from error
    others = [f"'{name}'" for name in classes if name not in task.classes]
    if others:
        raise DataError(
            f"{option}: {task.name} has no class {first_few(others)}, only "
            f"{first_few(task.classes, 20)}: rename or remove these folders"
        )
    labels = tuple(task.classes.index(classes[label]) for label in split.class_indices)
    return dataclasses.replace(split, labels=labels)


def inspect_shifted(
    config: TrainConfig, split: Split, task: TaskData, content_hashes: Mapping[str, str]
) -> tuple[Split, tuple[str, ...]]:
    """Read every image of `shifted`, and leave out those that cannot be read.

    Args:
        config: the options.
        split: from `load_shifted`.
        task: the dataset.
        content_hashes: of each of its samples, by path.

    Returns:
        The readable images, and warnings to be shown.

    Raises:
        DataError: if none can be read.
    """
    threads = count_workers(config.num_workers) or min(8, cpu_count())
    scans = scan_images({"shifted": split}, num_threads=threads)
    bad = [scan for scan in scans if not scan.content_hash]
    if len(bad) == len(scans):
        raise DataError(
            f"`shifted={config.shifted}`: none of its {len(bad)} images can be read; replace them: "
            f"{_reasons(bad)}"
        )
    warnings = []
    if bad:
        warnings.append(
            f"{len(bad)} of {len(scans)} images of {config.shifted} cannot be read and are left "
            f"out; replace or remove them: {_reasons(bad)}"
        )
    trained = {content_hashes.get(path) for path in pool_train_and_val(task).paths}
    overlap = [f"'{scan.path}'" for scan in scans if scan.content_hash in trained]
    if overlap:
        warnings.append(
            f"{len(overlap)} of {len(scans) - len(bad)} images of {config.shifted} are also among "
            f"the training or validation images: {first_few(overlap)}; the accuracy on shifted "
            "images is optimistic: remove them"
        )
    readable = split.subset(i for i, scan in enumerate(scans) if scan.content_hash)
    return readable, tuple(warnings)


def describe_shifted(config: TrainConfig, split: Split) -> str:
    """Return a log line about the images of `shifted`."""
    classes = len(Counter(split.class_indices))
    return f"shifted  {config.shifted}: {len(split)} images of {classes} classes"


def _reasons(bad: Sequence[ImageScan]) -> str:
    return first_few([f"'{scan.path}' ({scan.reason[:120]})" for scan in bad])
