"""Whether a data set is on this machine, without loading it or downloading anything."""

from delta_transfer.data.download import default_data_root
from delta_transfer.data.names import MOLECULENET, TU
from delta_transfer.data.registry import BUILTIN_DATASETS
from delta_transfer.data.sources.archives import ARCHIVES
from delta_transfer.data.sources.archives import is_available as has_archive
from delta_transfer.data.sources.torchvision import PREFIX as TORCHVISION
from delta_transfer.data.sources.torchvision import is_available as has_torchvision
from delta_transfer.errors import UserError
from delta_transfer.utils.optional import require_graph_libraries
from delta_transfer.utils.paths import user_path


def is_available(data: str, *, data_root: str | None) -> bool | None:
    """Whether a data set is there.

    Args:
        data: as of `load_data`.
        data_root: likewise.

    Returns:
        None where that cannot be told: nobody looks into the cache of the Hugging Face Hub, and
        graphs need their libraries.

    Raises:
        UserError: if there is no data set of this name in its collection.
    """
    root = default_data_root() if data_root is None else user_path(data_root)
    if data in BUILTIN_DATASETS:
        return True
    if data in ARCHIVES:
        return has_archive(data, root)
    if data.startswith(TORCHVISION):
        return has_torchvision(data.removeprefix(TORCHVISION), root)
    if data.startswith((MOLECULENET, TU)):
        try:
            require_graph_libraries(data)
        except UserError:
            return None
        from delta_transfer.data.graphs import tudataset
        from delta_transfer.data.molecules import moleculenet

        if data.startswith(TU):
            return tudataset.is_available(data.removeprefix(TU), root)
        return moleculenet.is_available(data.removeprefix(MOLECULENET), root)
    return None if data.startswith("hf/") else user_path(data).exists()
