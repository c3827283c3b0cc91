"""The commands, one module each, imported when the command is called."""

import importlib
from collections.abc import Callable, Sequence

from delta_transfer.errors import unknown

COMMANDS = {
    "train": "Fine-tune a pretrained network on a folder of images.",
    "evaluate": "Evaluate a run on labelled images, molecules or graphs, with per-class metrics.",
    "predict": "Predict the class and probability of images or molecules.",
    "export": "Export the network of a run to ONNX, torch.export or timm, and verify it.",
    "push": "Upload a run to the Hugging Face Hub with a model card, or write the folder for it.",
    "app": "Start a web app that predicts images and explains the predictions.",
    "attention": "Measure how much each channel of a pretrained network matters for a data set.",
    "compare": "Compare methods on the same data over several seeds; resumes if interrupted.",
    "search": "Search for the best strength, learning rate, number of epochs and taps.",
    "bench": "Reproduce a published benchmark and compare with the published results.",
    "taps": "List the modules of a network that can be tapped, and the automatic choice.",
    "pretrain": "Pretrain a network on molecules or graphs without labels.",
    "methods": "List the fine-tuning methods.",
    "demo": "Compare DELTA with its baselines on bundled images: a few minutes, offline.",
}
"""Command -> summary, in the order of `delta-transfer --help`."""


def find_command(name: str) -> Callable[[Sequence[str]], None]:
    """Return the function that runs a command of `COMMANDS` with its arguments.

    Raises:
        ConfigError: if the command is unknown.
    """
    if name not in COMMANDS:
        raise unknown("command", name, list(COMMANDS))
    module = importlib.import_module(f"delta_transfer.cli.commands.{name}")
    command: Callable[[Sequence[str]], None] = getattr(module, name)
    return command
