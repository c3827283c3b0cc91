"""Resolve the arguments of predict to images or molecules."""

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
from delta_transfer.errors import DataError
from delta_transfer.utils.optional import require_graph_libraries


def find_inputs(
    arguments: Sequence[str | Path],
    spec: InputSpec | GraphSpec,
    *,
    smiles_column: str | None = None,
) -> tuple[list[str], Callable[[str], Any]]:
    """Return the names of the samples, and the function that reads one of them.

    Args:
        arguments: for a network on images: images, folders of images, and CSV files that list
            images; for a network on molecules: SMILES, and files of SMILES.
        spec: the network's input spec.
        smiles_column: of a CSV file of molecules.

    Raises:
        DataError: if a path does not exist or has no inputs, or the network's graphs are not
            molecules.
    """
    if isinstance(spec, InputSpec):
        return [file for path in arguments for file in _images(Path(path))], _read_image
    if spec.node_features != "atoms":
        raise DataError(
            "predict supports images and molecules, not other graphs: use evaluate, which writes "
            "predictions.csv"
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
            raise DataError(
                f"no images in {path}: the files must end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found
    if not os.path.isfile(path):
        raise DataError(
            f"there is no file or folder {path}: use images, folders of images, or CSV files with "
            "a column path"
        )
    return list_csv(path) if path.suffix.lower() == ".csv" else [str(path)]


def _molecules(argument: str, column: str | None) -> list[str]:
    """Return the SMILES in a file or, if there is no such file, the argument itself."""
    file = Path(argument)
    return list_smiles(file, column=column) if os.path.isfile(file) else [argument]
