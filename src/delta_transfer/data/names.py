"""The prefixes of dataset collections, and the lookup of a name in one."""

from collections.abc import Mapping, Sequence

from delta_transfer.errors import unknown

TORCHVISION, HUB, MOLECULENET, TU = "torchvision/", "hf/", "moleculenet/", "tu/"


def find_dataset(prefix: str, name: str, aliases: Mapping[str, Sequence[str]]) -> str:
    """Return the key of a dataset in a collection, ignoring case, dashes and underscores.

    Args:
        prefix: of the collection, for the message.
        name: of the dataset.
        aliases: other accepted names of each dataset, by its key.

    Raises:
        UserError: listing the nearest names, if there is no such dataset.
    """

    def normalize(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    for key, others in aliases.items():
        if normalize(name) in map(normalize, (key, *others)):
            return key
    raise unknown("dataset", prefix + name, [prefix + key for key in aliases])
