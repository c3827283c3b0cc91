"""What a person asks about: the images or molecules that the arguments of predict stand for."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.data.images.decode import IMAGE_SUFFIXES, read_image
from delta_transfer.data.molecules.smiles_files import list_smiles
from delta_transfer.data.sources.csv import list_csv
from delta_transfer.data.sources.listing import find_images
from delta_transfer.errors import UserError
from delta_transfer.utils.optional import require_graph_libraries


def find_inputs(
    arguments: Sequence[str | Path],
    spec: InputSpec | GraphSpec,
    *,
    smiles_column: str | None = None,
) -> tuple[list[str], Callable[[str], Any]]:
    """The samples that arguments stand for, and what reads one of them.

    Args:
        arguments: for a network on images: images, folders of them, CSV files that list them.
            For one on molecules: SMILES, and files of them.
        spec: what the network takes.
        smiles_column: of a CSV file of molecules.

    Raises:
        UserError: if a path does not exist or holds nothing to predict, or the network's graphs
            are no molecules.
    """
    if isinstance(spec, InputSpec):
        return [file for path in arguments for file in _images(Path(path))], _read_image
    if spec.node_features != "atoms":
        raise UserError(
            "predict is for images and molecules, and the graphs of this run are neither: use "
            "evaluate, whose predictions.csv has what the network says of each"
        )
    require_graph_libraries("predict")
    from delta_transfer.data.molecules.smiles import read_molecule

    names = [name for one in arguments for name in _molecules(str(one), smiles_column)]
    return names, read_molecule


def _read_image(path: str) -> Image.Image:
    return read_image(Path(path))


def _images(path: Path) -> list[str]:
    if os.path.isdir(path):
        found = [str(path / name) for name in find_images(path, root=path)]
        if not found:
            raise UserError(
                f"no images in {path}: the files must end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found
    if not os.path.isfile(path):
        raise UserError(
            f"there is no file or folder {path}: give images, folders of images, or CSV files "
            "with a column path"
        )
    return list_csv(path) if path.suffix.lower() == ".csv" else [str(path)]


def _molecules(argument: str, column: str | None) -> list[str]:
    """Those in a file or, where there is none of the name, the one of this SMILES."""
    file = Path(argument)
    return list_smiles(file, column=column) if os.path.isfile(file) else [argument]
