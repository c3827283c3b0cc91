"""The one rule on classes and splits: what is measured must be learnt, not the other way round."""

from collections.abc import Iterable, Mapping

from delta_transfer.errors import UserError, first_few


def check_split_classes(
    found: Mapping[str, Iterable[str]], *, source: str, mend: str, where: Mapping[str, str]
) -> list[str]:
    """Check that every class of the other splits is in the training split, too.

    Args:
        found: the classes of each split's pictures, by what messages call the split; the first is
            the training split.
        source: what messages call the data; it begins the message.
        mend: what to do about it, for the message.
        where: what a message adds to a class, such as its line; classes may be missing.

    Returns:
        A note for each of the other splits that lacks a class.

    Raises:
        UserError: naming the classes that each split lacks, if the training split lacks one.

    Example:
        >>> found = {"train": ["cat", "dog"], "val": ["cat"]}
        >>> check_split_classes(found, source="pets", mend="add some", where={})
        ["no picture of class 'dog' in val: nothing is known there of how well it is told"]
    """
    present = {split: set(classes) for split, classes in found.items()}
    everything = set().union(*present.values())
    lacking = {
        split: [f"'{name}'{where.get(name, '')}" for name in sorted(everything - there)]
        for split, there in present.items()
        if everything - there
    }
    if next(iter(found)) in lacking:
        said = "; ".join(f"{split} lacks {first_few(names)}" for split, names in lacking.items())
        raise UserError(
            f"{source}: the splits must have the same classes, or val and test fewer, but {said}: "
            f"{mend}"
        )
    return [
        f"no picture of class {first_few(names)} in {split}: nothing is known there of how well "
        f"{'it is' if len(names) == 1 else 'they are'} told"
        for split, names in lacking.items()
    ]
