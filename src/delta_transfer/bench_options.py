"""The options of bench."""

import dataclasses

from delta_transfer.errors import UserError
from delta_transfer.options import Device, check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of bench.

    Args:
        name: of a recipe (see: delta-transfer bench --list), or a YAML file of your own.
        list: list the recipes, with DELTA's published figure and whether the data is there.
        dry_run: say what would be downloaded, how large it is and how long it would take; nothing
            is trained.
        method: names with commas between, in the place of the recipe's.
        seeds: with commas between, in the place of the recipe's.
        limit: so many training pictures of each class, drawn at random; all if not given.
        data_root: where data sets, and weights that no library brings, lie or are downloaded to; a
            cache folder if not given.
        weights: start from the weights in this file.
        out: folder of the runs; runs/bench-NAME if not given. What was broken off goes on there.
        overwrite: start anew, in the place of what is in that folder.
        jobs: runs at the same time, as for compare.
        device: auto, cpu, cuda or mps.
        workers: processes that load pictures; chosen by the machine if not given.
    """

    name: str | None = None
    list: bool = False
    dry_run: bool = False
    method: str | None = None
    seeds: str | None = None
    limit: int | None = None
    data_root: str | None = None
    weights: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: int | None = None
    device: Device = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_least("--limit", self.limit, 1)
        check_least("--jobs", self.jobs, 1)
        check_least("--workers", self.workers, 0)
        if self.list == (self.name is not None):
            raise UserError(
                "give the NAME of a recipe, delta-transfer bench NAME, or --list alone, which "
                "shows all"
            )
