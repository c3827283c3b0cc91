"""A comparison as large as people make them: made up, with files as large as real ones."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import comparison_columns
from tests.report.made import CONFIG, RESULT, write_csv

TEXTURES = (
    "banded braided bubbly cracked frilly gauzy grooved lined "
    "marbled meshed paisley pitted pleated porous stained veined"
).split()
CLASSES = [f"{kind}_{name}" for kind in ("woven", "dotted", "smooth") for name in TEXTURES][:47]
PER_CLASS, EPOCHS, EXAMPLES = 40, 15, 32
TAPS = {"blocks.1": 24, "blocks.2": 40, "blocks.4": 112, "blocks.6": 320}
# how often right, how far it moves from the source, how much it overfits
METHODS = {
    "probe": (0.62, 0.0, 0.0),
    "l2": (0.64, 0.9, 0.5),
    "lp_ft": (0.65, 0.7, 0.3),
    "l2sp": (0.66, 0.5, 0.2),
    "delta": (0.68, 0.1, 0.1),
    "delta_attention": (0.69, 0.09, 0.1),
}


def make_large_comparison(folder: Path, sizes: Sequence[int | None] = (None,)) -> Path:
    """Six methods and three seeds on 47 classes; of several sizes only the last has all files."""
    rows: list[Sequence[object]] = [comparison_columns(ACCURACY)]
    photos = [_photo(number) for number in range(EXAMPLES)]
    for size in sizes:
        for seed in range(3):
            for method in METHODS:
                parts = [f"{size}-per-class"] if size else []
                name = "/".join([*parts, f"{method}-seed{seed}"])
                figures = _figures(method, seed, size)
                (folder / name).mkdir(parents=True)
                options = {"method": method, "seed": seed, "samples_per_class": size}
                (folder / name / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **options}))
                (folder / name / "result.json").write_text(json.dumps({**RESULT, **figures}))
                if size == sizes[-1]:
                    _write_files(folder / name, method, seed, photos)
                values = {**RESULT, **figures, "folder": name, "trained_share": 1.0}
                row = [values[column] for column in comparison_columns(ACCURACY)]
                rows.append(["" if value is None else value for value in row])
    write_csv(folder / "results.csv", rows)
    return folder


def _figures(method: str, seed: int, size: int | None) -> dict[str, object]:
    accuracy = METHODS[method][0] - (0.0 if size is None else 0.6 / size)
    noise = random.Random(f"{method}{seed}{size}").gauss(0, 0.008)
    probe = METHODS["probe"][0] - (0.0 if size is None else 0.6 / size)
    probe += random.Random(f"probe{seed}{size}").gauss(0, 0.008)
    return {
        "method": method,
        "seed": seed,
        "samples_per_class": size,
        "test_accuracy": accuracy + noise,
        "test_mean_class_accuracy": accuracy + noise,
        "val_accuracy": accuracy,
        "linear_probe_test_accuracy": probe,
        "linear_probe_val_accuracy": probe,
        "strength": {"probe": None, "l2": None, "lp_ft": None}.get(method, 3.0),
        "wall_time_s": 40.0 + 300 * (method != "probe"),
        "peak_memory_mib": 900.0 + 700 * (method.startswith("delta")),
        "taps": list(TAPS),
        "num_classes": len(CLASSES),
        "num_train_samples": 1880,
    }


def _write_files(folder: Path, method: str, seed: int, photos: Sequence[bytes]) -> None:
    accuracy, moves, overfits = METHODS[method]
    draw = random.Random(f"{method}{seed}")
    rows = _predictions(accuracy, draw)
    write_csv(folder / "predictions.csv", [["path", "label", "prediction", *CLASSES], *rows])
    (folder / "examples").mkdir()
    examples: list[Sequence[object]] = [["file", "path", "label", "prediction", "probability"]]
    wrong = [row for row in rows if row[1] != row[2]]
    for number, row in enumerate([*draw.sample(wrong, 20), *draw.sample(rows, EXAMPLES - 20)]):
        (folder / "examples" / f"{number:02d}.jpg").write_bytes(photos[number])
        examples.append([f"{number:02d}.jpg", *row[:3], max(map(float, row[3:]))])
    write_csv(folder / "examples.csv", examples)
    if method == "probe":
        return
    metrics: list[Sequence[object]] = [["epoch", "train_task", "val_loss", "val_accuracy"]]
    for epoch in range(EPOCHS + 1):
        done = 1 - 0.75**epoch
        if epoch:
            metrics.append([epoch, 1.4 * (1 - done) + 0.05, "", ""])
        loss = 1.5 - 0.35 * done + overfits * (epoch / EPOCHS) ** 2 + draw.gauss(0, 0.01)
        metrics.append([epoch, "", loss, 0.6 + (accuracy - 0.6) * done + draw.gauss(0, 0.004)])
    write_csv(folder / "metrics.csv", metrics)
    drift = [
        [epoch, tap, moves * (1 - 0.8**epoch) * depth]
        for epoch in range(EPOCHS + 1)
        for depth, tap in enumerate(TAPS, start=1)
    ]
    write_csv(folder / "drift.csv", [["epoch", "tap", "distance"], *drift])
    if method == "delta_attention":
        write_attention(folder, {tap: _weights(size, seed) for tap, size in TAPS.items()})


def write_attention(folder: Path, taps: dict[str, np.ndarray]) -> None:
    """A file as `ChannelAttention.save` writes it, as far as the report reads it."""
    about = json.dumps({"format": "delta-transfer channel attention 2", "taps": list(taps)})
    tensors = {f"attention/{tap}": weights for tap, weights in taps.items()}
    save_file(tensors, folder / "attention.safetensors", {"delta-transfer": about})


def _weights(size: int, seed: int) -> np.ndarray:
    weights = np.exp(np.random.default_rng([size, seed]).normal(size=size) / 5)
    return (weights / weights.sum()).astype(np.float32)


def _predictions(accuracy: float, draw: random.Random) -> list[list[str]]:
    rows = []
    for number in range(len(CLASSES) * PER_CLASS):
        label = number % len(CLASSES)
        right = draw.random() < accuracy
        answer = label if right else (label + draw.choice([1, 1, 2, 7, 16])) % len(CLASSES)
        probability = draw.uniform(0.3, 1)
        cells = [f"{(1 - probability) / (len(CLASSES) - 1):.6f}"] * len(CLASSES)
        cells[answer] = f"{probability:.6f}"
        rows.append(
            [f"test/{CLASSES[label]}/{number}.jpg", CLASSES[label], CLASSES[answer], *cells]
        )
    return rows


def _photo(number: int) -> bytes:
    """A small JPEG with as much detail as a photograph."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((160, 160), Image.Resampling.BICUBIC), dtype=float)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
