"""`--lr find`: the learning rate from a range test, stored in the run's folder."""

import csv
import dataclasses
import logging
from pathlib import Path

import torch

from delta_transfer.runs.fine_tune import (
    apply_batch_norm_mode,
    build_regularizer,
    initialize_model,
    network_context,
)
from delta_transfer.runs.plan import (
    FineTunePlan,
    make_fit_config,
    make_optimizer_config,
    make_task_loss,
    run_fingerprint,
)
from delta_transfer.training.lr_finder import run_lr_range_test, suggest_lr
from delta_transfer.utils.files import to_csv, write_atomically
from delta_transfer.utils.module_state import preserve_random_state
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

MAX_LR = 1.0  # of the range test


def resolve_lr(plan: FineTunePlan, folder: Path) -> FineTunePlan:
    """Replace `--lr find` by a number, the same for all trainings of a run.

    Args:
        plan: data, network, options and method.
        folder: folder of the run; the range test is saved in its `lr.csv`.

    Raises:
        UserError: if the network does not suit the method.
    """
    if plan.config.lr != "find" or not plan.method.trains_network:
        return plan
    path, own = folder / "lr.csv", run_fingerprint(plan.setup)
    noun = plan.setup.task.sample_type
    trial = _load_range_test(path, own, sample_type=noun)
    if trial is None:
        found = [(*row, own) for row in _run_range_test(plan, folder)]
        write_atomically(path, to_csv([("lr", "loss", "fingerprint"), *found]))
        trial = _load_range_test(path, own, sample_type=noun)
        assert trial is not None
    lr = suggest_lr(trial)
    logger.info(
        "lr       %g: a tenth of the highest rate with a low loss in a range test of %d steps "
        "(lr.csv)",
        lr,
        len(trial),
    )
    return _with_lr(plan, lr)


def _load_range_test(
    path: Path, fingerprint: str, *, sample_type: str
) -> list[tuple[float, float]] | None:
    """Return rates and losses of an earlier test of the same samples and weights, if any."""
    if not path.is_file():
        return None
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    if {row.get("fingerprint") for row in rows} != {fingerprint}:
        logger.warning(
            "%s is from other %ss or pretrained weights: repeating the range test",
            path,
            sample_type,
        )
        return None
    return [(float(row["lr"]), float(row["loss"])) for row in rows]


def _run_range_test(plan: FineTunePlan, folder: Path) -> list[tuple[float, float]]:
    """Return rates and losses of a range test with a copy of the network."""
    plan = apply_batch_norm_mode(_with_lr(plan.candidates[0], MAX_LR))
    network, attention = initialize_model(plan)
    regularizer = build_regularizer(plan, network, attention)
    seed = plan.config.seed
    generator = torch.Generator().manual_seed(derive_seed(seed, "trial", "method"))
    with preserve_random_state(network), network_context(plan, network, generator):
        torch.manual_seed(derive_seed(seed, "trial"))  # for dropout
        steps = make_optimizer_config(plan, network)
        return run_lr_range_test(
            network,
            regularizer,
            make_fit_config(plan, folder, validate=False),
            loss=make_task_loss(plan),
            head=plan.setup.backbone.head,
            task_type=plan.setup.task.task_type,
            optimizer_config=dataclasses.replace(
                steps, schedule="exponential", warmup_ratio=0.0, num_head_cycles=1, ema=None
            ),
        )


def _with_lr(plan: FineTunePlan, lr: float) -> FineTunePlan:
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, lr=lr))
