"""Speed of predict compared with a bare timm loop: same images, network, batches and workers.

    python benchmarks/predict.py data/images/cifar10_small/test --image-size 96
    python benchmarks/predict.py images --run runs/images-delta-20250101-120000

Trains nothing: without --run the network has a random head. The two alternate.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from delta_transfer.backbones.registry import load_backbone
from delta_transfer.backbones.saved import save_model
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.images.decode import IMAGE_SUFFIXES
from delta_transfer.inference.predictor import Predictor
from delta_transfer.training.loaders import count_workers


class Images(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def make_run(folder: Path, *, model: str, image_size: int | None) -> Path:
    (folder / "model").mkdir(parents=True)
    backbone = load_backbone(model, num_outputs=10, image_size=image_size)
    classes = [str(number) for number in range(10)]
    save_model(folder / "model", backbone, backbone.module, classes=classes)
    config = TrainOptions(data="", model=model, image_size=image_size).resolve()
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


def bare_loop(
    run: Path, files: list[Path], *, device: torch.device, batch_size: int, workers: int
) -> Callable[[], list[int]]:
    network = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval().to(device)
    config = timm.data.resolve_data_config({}, model=network)
    loader = DataLoader(
        Images(files, timm.data.create_transform(**config, is_training=False)),
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )

    def predict() -> list[int]:
        found: list[int] = []
        with torch.inference_mode():
            for inputs in loader:
                probabilities = network(inputs.to(device, non_blocking=True)).softmax(dim=1).cpu()
                found += probabilities.argmax(dim=1).tolist()
        return found

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder")
    parser.add_argument("--run", type=Path, help="a finished run; one is made if not given")
    parser.add_argument("--model", default=TrainConfig.model, help="of the run that is made")
    parser.add_argument("--image-size", type=int, help="of the run that is made")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    files = sorted(f for f in options.images.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    workers = count_workers(options.num_workers)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or make_run(
            Path(folder) / "run", model=options.model, image_size=options.image_size
        )
        predictor = Predictor(
            run, device=options.device, batch_size=options.batch_size, num_workers=workers
        )
        bare = bare_loop(
            run, files, device=predictor.device, batch_size=options.batch_size, workers=workers
        )

        def ours() -> list[int]:
            return [predictor.classes.index(found.top_class) for found in predictor.predict(files)]

        alike = statistics.mean(a == b for a, b in zip(ours(), bare(), strict=True))  # warm-up too
        speeds: dict[str, list[float]] = {"predict": [], "bare timm": []}
        for _ in range(options.repeat):
            for name, loop in (("predict", ours), ("bare timm", bare)):
                started = time.perf_counter()
                loop()
                speeds[name].append(len(files) / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(
        f"{len(files)} images of {predictor.backbone.input_spec.size} pixels on "
        f"{predictor.device}, "
        f"batches of {options.batch_size}, {workers} workers, {torch.get_num_threads()} threads; "
        f"{100 * alike:.1f}% of the predictions are the same"
    )
    print(f"{'images/s':10} {'median':>8}  each repetition")
    for name, values in (*speeds.items(), ("ratio", ratios)):
        digits = 2 if name == "ratio" else 1
        each = "  ".join(f"{value:.{digits}f}" for value in values)
        print(f"{name:10} {statistics.median(values):8.{digits}f}  {each}")
    if options.json:
        figures = {"images": len(files), "workers": workers, **speeds, "ratio": ratios}
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
