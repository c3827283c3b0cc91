"""Tiny images to learn from, and the options with which a run on them takes two seconds."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from delta_transfer.config.train import TrainConfig, TrainOptions

CLASSES = ("checks", "rings", "stripes")
SPLITS = {"train": (8, 8, 8), "val": (5, 5, 5), "test": (3, 4, 5)}  # images of each class
NOISE = 150  # so that not everything is recognised


def write_images(root: Path) -> Path:
    """`root/{train,val,test}/<class>/<number>.png`: noisy patterns, no two of them alike."""
    generator = np.random.default_rng(0)
    for split, counts in SPLITS.items():
        for name, count in zip(CLASSES, counts, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_pattern(name, generator)).save(folder / f"{number}.png")
    return root


def _pattern(name: str, generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:36, :40] + generator.uniform(0, 40, (2, 1, 1))
    period = generator.uniform(5, 9)
    if name == "checks":
        wave = np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period))
    elif name == "rings":
        wave = np.sin(2 * np.pi * np.hypot(x - 40, y - 40) / period)
    else:
        wave = np.sin(2 * np.pi * (x + y) / period)
    colour = generator.uniform(20, 60, 3)
    noise = generator.normal(0, NOISE, (36, 40, 3))
    return np.clip(128 + wave[..., None] * colour + noise, 0, 255).astype(np.uint8)


OPTIONS: dict[str, Any] = {
    "image_size": 32,
    "epochs": 2,
    "lr": 1e-4,
    "batch_size": 8,
    "num_workers": 0,
    "device": "cpu",
}


def tiny(data: Path, out: Path, **options: Any) -> TrainConfig:
    """The options of a tiny run, by default with DELTA's channel attention."""
    options = {"method": "delta_attention", **options}
    return TrainOptions(data=str(data), out=str(out), **_tiny(options)).resolve()


def flags(**options: Any) -> list[str]:
    """The same as flags of a command."""
    options = _tiny(options)
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def model_bytes(run: Path) -> dict[str, bytes]:
    """File name -> content of the model folder of a run."""
    return {path.name: path.read_bytes() for path in sorted((run / "model").iterdir())}


def _tiny(options: dict[str, Any]) -> dict[str, Any]:
    """With one training of DELTA, where its default are two."""
    delta = options.get("method", "delta").startswith("delta")
    once = {"strength": 1.0} if delta and options.get("preset") != "paper" else {}
    return {**OPTIONS, **once, **options}
