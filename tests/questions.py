"""Tasks that tell no classes: small images with questions, some unanswered, and with values."""

import math

import numpy as np
from PIL import Image

from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import Split, TaskData
from delta_transfer.metrics.task_types import MultilabelBinary, Regression, TaskType

QUESTIONS = ("bright", "red", "striped")
VALUES = ("brightness", "stripes")
SIZES = {"train": 24, "val": 12, "test": 16}

Facts = tuple[float, float, float]


def image(path: str) -> Image.Image:
    """The image of a path such as `train/3`: noise, with what its facts say."""
    light, red, wave = facts(path)
    x = np.mgrid[:36, :40][1]
    noise = _generator(path, 1).normal(0, 60, (36, 40, 3))
    colour = np.array([60.0 * red, 0, 0])
    pixels = 60 + 100 * light + colour + 50 * wave * np.sin(x)[..., None] + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def facts(path: str) -> Facts:
    """How bright, how red, how striped, from 0 to 1."""
    light, red, wave = _generator(path, 0).uniform(0, 1, 3)
    return float(light), float(red), float(wave)


def answers(path: str) -> tuple[float, ...]:
    """Yes or no to each question; every fourth is not known."""
    unknown = _generator(path, 2).uniform(0, 1, 3) < 0.25
    told = zip(facts(path), unknown, strict=True)
    return tuple(math.nan if missing else float(fact > 0.5) for fact, missing in told)


def values(path: str) -> tuple[float, ...]:
    """Two of the facts in units of their own, of which the second is now and then not known."""
    light, _, wave = facts(path)
    unknown = _generator(path, 2).uniform() < 0.2
    return 200.0 + 50.0 * light, math.nan if unknown else 0.01 * wave


def load_questions(options: SplitOptions) -> TaskData:
    """A loader as in `BUILTIN_DATASETS`."""
    train = split("train", answers)
    known = [not math.isnan(answer) for label in train.labels for answer in label]
    task_type = MultilabelBinary(labelled_fraction=sum(known) / len(known))
    return _task("tests/questions", QUESTIONS, answers, task_type, "roc_auc")


def load_values(options: SplitOptions) -> TaskData:
    """A loader as in `BUILTIN_DATASETS`."""
    found = np.array(split("train", values).labels)
    mean, std = np.nanmean(found, axis=0), np.nanstd(found, axis=0)
    task_type = Regression(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return _task("tests/values", VALUES, values, task_type, "rmse")


def split(name: str, label) -> Split:
    """A split, labelled by a function of its paths."""
    paths = tuple(f"{name}/{number}" for number in range(SIZES[name]))
    return Split(paths=paths, labels=tuple(map(label, paths)), read=image)


def _task(name: str, columns, label, task_type: TaskType, metric) -> TaskData:
    parts = {part: split(part, label) for part in SIZES}
    return TaskData(name=name, classes=columns, task_type=task_type, metric=metric, **parts)


def _generator(path: str, purpose: int) -> np.random.Generator:
    part, number = path.split("/")
    return np.random.default_rng([list(SIZES).index(part), int(number), purpose])
