"""Files and folders below a folder of data sets, whatever the capitals in their names."""

from pathlib import Path


def find_ignoring_case(folder: Path, name: str) -> list[Path]:
    """What is called so in a folder: as it is written first, then in other capitals."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    alike = [path for path in there if path.name.lower() == name.lower()]
    return sorted(alike, key=lambda path: path.name != name)


def candidate_folders(root: Path, *names: str) -> list[Path]:
    """The folders in which the files of a data set may lie: `root/name/raw`, `root/name`, `root`.

    Args:
        root: the folder of all data sets.
        names: what the folder of this one may be called.
    """
    own = [folder for name in names for folder in find_ignoring_case(root, name)]
    return [*(raw for folder in own for raw in find_ignoring_case(folder, "raw")), *own, root]
