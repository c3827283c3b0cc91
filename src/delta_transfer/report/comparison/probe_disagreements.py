"""Images that only one of a method and the linear probe classifies correctly."""

import dataclasses

from delta_transfer.report.comparison.runs import PROBE, Comparison
from delta_transfer.report.run_files import PredictionRow, read_examples, read_predictions


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """An image as a data: URI, with the predictions of the probe and the method."""

    image: str
    probe: PredictionRow
    method: PredictionRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeDisagreements:
    """A method compared to the probe on the same images.

    Args:
        seed: of both runs.
        num_samples: number of images.
        num_gained: correct by the method and wrong by the probe.
        num_lost: wrong by the method and correct by the probe.
        gained_examples: some of the gained, with images.
        lost_examples: some of the lost, with images.
    """

    seed: int
    num_samples: int
    num_gained: int
    num_lost: int
    gained_examples: tuple[Disagreement, ...]
    lost_examples: tuple[Disagreement, ...]


def find_probe_disagreements(
    comparison: Comparison, method: str, *, limit: int = 12
) -> ProbeDisagreements | None:
    """Compare the first seed of a method to the probe with the same seed.

    Images are those that one of the two runs saved as examples.

    Args:
        comparison: the runs.
        method: not the probe.
        limit: most images of a kind.

    Returns:
        None if there is no such run of the probe, or it has other images.

    Raises:
        UserError: if a file of the two runs is damaged.
    """
    entry = comparison.runs_of(method)[0]
    beside = [other for other in comparison.runs_of(PROBE) if other.seed == entry.seed]
    if not beside or method == PROBE:
        return None
    folders = [comparison.folder / run.folder for run in (beside[0], entry)]
    probe, own = ({row.path: row for row in read_predictions(f).rows} for f in folders)
    if probe.keys() != own.keys():
        return None
    gained = {path for path in own if own[path].is_correct and not probe[path].is_correct}
    lost = {path for path in own if probe[path].is_correct and not own[path].is_correct}
    images = {
        example.prediction.path: example.image
        for folder in folders
        for example in read_examples(folder) or ()
    }

    def pairs(paths: set[str]) -> tuple[Disagreement, ...]:
        found = [path for path in images if path in paths][:limit]
        return tuple(Disagreement(images[path], probe[path], own[path]) for path in found)

    return ProbeDisagreements(
        seed=entry.seed,
        num_samples=len(own),
        num_gained=len(gained),
        num_lost=len(lost),
        gained_examples=pairs(gained),
        lost_examples=pairs(lost),
    )
