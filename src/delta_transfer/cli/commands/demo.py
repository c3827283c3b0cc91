"""The command demo."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.commands.compare import comparison_folder, show_comparison
from delta_transfer.config.commands import DemoOptions, parse_seeds
from delta_transfer.config.train import TrainOptions

if TYPE_CHECKING:  # it loads torch, which --help does without
    from delta_transfer.experiments.comparison.compare import ComparisonResult

logger = logging.getLogger(__name__)

DEMO_METHODS = ("probe", "l2", "l2sp", "delta")
DEMO_IMAGE_SIZE = 64  # of cells of 40 pixels


def demo(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    show_comparison(run(parse_command("demo", DemoOptions, args)))


def run(options: DemoOptions) -> "ComparisonResult":
    """Run the comparison of the demo.

    Raises:
        ConfigError: if an option is wrong.
    """
    from delta_transfer.experiments.comparison.compare import compare

    config = TrainOptions(
        data="skimage/patches",
        image_size=DEMO_IMAGE_SIZE,
        epochs=options.epochs,
        overwrite=options.overwrite,
        device=options.device,
    ).resolve()
    seeds, folder = parse_seeds(options.seeds), comparison_folder(options.out, otherwise="demo")
    logger.info("17 photographs and textures cut into cells; 5 training images per class")
    return compare(config, folder, methods=DEMO_METHODS, seeds=seeds)
