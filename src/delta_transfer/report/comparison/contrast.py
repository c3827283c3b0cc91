"""Pictures on which a method and the linear probe do not agree about right and wrong."""

import dataclasses

from delta_transfer.report.comparison.runs import PROBE, Comparison
from delta_transfer.report.run_files import Prediction, read_examples, read_predictions


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture, as a data: URI, with what the probe and the method say of it."""

    picture: str
    probe: Prediction
    method: Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """A method beside the probe on the same pictures.

    Args:
        seed: of both runs.
        pictures: how many both have seen.
        gained: how many the method has right and the probe wrong.
        lost: how many the probe has right and the method wrong.
        gains: some of the gained, with pictures.
        losses: some of the lost, with pictures.
    """

    seed: int
    pictures: int
    gained: int
    lost: int
    gains: tuple[Pair, ...]
    losses: tuple[Pair, ...]


def contrast(comparison: Comparison, method: str, *, limit: int = 12) -> Contrast | None:
    """The first seed of a method beside the probe with the same seed.

    Pictures are those that one of the two runs left as examples.

    Args:
        comparison: the runs.
        method: not the probe.
        limit: most pictures of a kind.

    Returns:
        The contrast, or None if there is no such run of the probe or it saw other pictures.

    Raises:
        UserError: if a file of the two runs is damaged.
    """
    entry = comparison.of(method)[0]
    beside = [other for other in comparison.of(PROBE) if other.seed == entry.seed]
    if not beside or method == PROBE:
        return None
    folders = [comparison.folder / run.folder for run in (beside[0], entry)]
    probe, own = ({row.path: row for row in read_predictions(f).rows} for f in folders)
    if probe.keys() != own.keys():
        return None
    gained = {path for path in own if own[path].right and not probe[path].right}
    lost = {path for path in own if probe[path].right and not own[path].right}
    pictures = {
        example.prediction.path: example.picture
        for folder in folders
        for example in read_examples(folder) or ()
    }

    def pairs(paths: set[str]) -> tuple[Pair, ...]:
        found = [path for path in pictures if path in paths][:limit]
        return tuple(Pair(pictures[path], probe[path], own[path]) for path in found)

    return Contrast(
        seed=entry.seed,
        pictures=len(own),
        gained=len(gained),
        lost=len(lost),
        gains=pairs(gained),
        losses=pairs(lost),
    )
