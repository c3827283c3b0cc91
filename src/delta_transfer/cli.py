"""The commands. Everything is imported inside the command that needs it, so that help is fast."""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from delta_transfer.console import Formatter, message, print_table
from delta_transfer.errors import UserError, unknown
from delta_transfer.options import (
    DemoOptions,
    EvaluateOptions,
    LayersOptions,
    NoOptions,
    PredictOptions,
)


def train(args: Sequence[str]) -> None:
    """Fine-tune a pretrained network on a folder of pictures."""
    from delta_transfer.arguments import parse
    from delta_transfer.config import TrainConfig

    config = parse(
        TrainConfig,
        args,
        prog="delta-transfer train",
        summary=_summary(train),
        positional=["data"],
        config_file=True,
    )
    from delta_transfer import run

    result = run.train(config)
    print(f"model    {result.folder / 'model'}")
    print(f"report   {result.folder / 'report.html'}")


def evaluate(args: Sequence[str]) -> None:
    """Measure a run's accuracy on labelled pictures."""
    from delta_transfer.arguments import parse

    options = parse(
        EvaluateOptions,
        args,
        prog="delta-transfer evaluate",
        summary=_summary(evaluate),
        positional=["run", "data"],
    )
    from delta_transfer.predict import Predictor

    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    found = predictor.evaluate(options.data)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    if found.seen:
        _log.warning("%s has no test split: the run has learnt from these pictures", options.data)
    print(f"pictures             {found.pictures}")
    print(f"accuracy             {100 * found.accuracy:.1f}%")
    print(f"mean class accuracy  {100 * found.mean_class_accuracy:.1f}%")


def predict(args: Sequence[str]) -> None:
    """Say what is on pictures: path, class and probability."""
    from delta_transfer.arguments import parse

    options = parse(
        PredictOptions,
        args,
        prog="delta-transfer predict",
        summary=_summary(predict),
        positional=["run", "paths"],
    )
    if options.top < 1:
        raise UserError(f"--top must be at least 1, got {options.top}")
    from delta_transfer.predict import Predictor

    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    predictions = predictor.predict(options.paths)
    if options.json:
        rows = [
            {
                "path": prediction.path,
                "prediction": next(iter(prediction.probabilities)),
                "probabilities": prediction.probabilities,
            }
            for prediction in predictions
        ]
        print(json.dumps(rows, indent=2))
        return
    for prediction in predictions:
        best = list(prediction.probabilities.items())[: options.top]
        print(prediction.path, *(f"{name}\t{value:.4f}" for name, value in best), sep="\t")


def layers(args: Sequence[str]) -> None:
    """List the modules of a network that can be tapped, and those that auto takes."""
    from delta_transfer.arguments import parse

    options = parse(
        LayersOptions,
        args,
        prog="delta-transfer layers",
        summary=_summary(layers),
        positional=["model"],
    )
    import torch

    from delta_transfer.backbones import load_backbone
    from delta_transfer.stages import auto_taps, list_modules

    backbone = load_backbone(
        options.model, num_outputs=2, image_size=options.image_size, pretrained=False
    )
    size = backbone.input.size
    rows = list_modules(backbone.module, torch.zeros(1, 3, size, size))
    chosen = auto_taps(backbone.module)
    if options.json:
        print(json.dumps([{**dataclasses.asdict(row), "auto": row.name in chosen} for row in rows]))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        mark = "*" if row.name in chosen else " "
        shape = "x".join(map(str, row.shape))
        print(f"{mark} {row.name:{width}}  {shape:>16}  channels in dim {row.channel_dim}")
    print(f"* taken by --taps auto; shapes are those of one picture of {size} pixels")


def methods(args: Sequence[str]) -> None:
    """List the methods of fine-tuning, a line each."""
    from delta_transfer.arguments import parse

    parse(
        NoOptions,
        args,
        prog="delta-transfer methods",
        summary=_summary(methods),
        positional=[],
    )
    from delta_transfer.methods import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        strength = "" if method.strength is None else f" (strength {method.strength:g})"
        print(f"{method.name:{width}}  {method.summary}{strength}")
        print(f"{'':{width}}  {method.paper}")


DEMO_METHODS = ("probe", "l2", "l2sp", "delta")
DEMO_IMAGE_SIZE = 96


def demo(args: Sequence[str]) -> None:
    """Compare DELTA with its peers on photographs that come installed: a few minutes, offline."""
    from delta_transfer.arguments import parse

    options = parse(
        DemoOptions,
        args,
        prog="delta-transfer demo",
        summary=_summary(demo),
        positional=[],
    )
    seeds = _seeds(options.seeds)
    folder = Path(options.out or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")
    from delta_transfer.compare import compare, table
    from delta_transfer.config import TrainConfig

    config = TrainConfig(
        data="skimage/patches",
        image_size=DEMO_IMAGE_SIZE,
        epochs=options.epochs,
        overwrite=options.overwrite,
        device=options.device,
    )
    _log.info("17 photographs and textures cut into cells; 5 training pictures a class")
    results = compare(config, folder, methods=DEMO_METHODS, seeds=seeds)
    print_table(table(results), seeds=len(seeds))
    print(f"report   {folder / 'report.html'}")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers with commas between, 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text}: each seed once, 0 or more")
    return seeds


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "layers": layers,
    "methods": methods,
    "demo": demo,
}

_log = logging.getLogger("delta_transfer")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 success, 2 the user's input is wrong, 1 anything else (with a traceback).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("delta-transfer"))
        return 0
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], list(COMMANDS))
        COMMANDS[args[0]](args[1:])
    except UserError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    finally:
        _log.removeHandler(handler)
    return 0


def _summary(command: Callable[..., Any]) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _help() -> str:
    lines = ["usage: delta-transfer COMMAND ...", "", "Fine-tune without forgetting.", ""]
    lines += [f"  {name:9} {_summary(command)}" for name, command in COMMANDS.items()]
    lines += ["", "delta-transfer COMMAND --help lists the options of a command."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
