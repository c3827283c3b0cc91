"""The final network of a run: of one training, or the average of `--strength auto`."""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from delta_transfer.errors import UserError, reworded
from delta_transfer.metrics.run_result import StrengthSearch
from delta_transfer.runs.fine_tune import FineTuneResult
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.selection import (
    SelectionResult,
    merge_train_and_val,
    refit,
    select_epoch,
    should_refit,
)
from delta_transfer.training.inference import predict_dataloader
from delta_transfer.utils.devices import move_to_device
from delta_transfer.utils.diagnostics import message

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]

MixingCoefficients = tuple[float, float, float]

CANDIDATE_COEFFICIENTS: tuple[MixingCoefficients, ...] = (
    (0.0, 0.5, 0.5),
    (0.25, 0.375, 0.375),
    (0.5, 0.25, 0.25),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
)
"""Coefficients of initialization, strongly and weakly regularised network; first the default."""

SINGLE_MODELS: tuple[MixingCoefficients, ...] = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
"""For candidates with different initial heads, which are too far apart to be averaged."""


def average_states(states: Sequence[State], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted average of networks' states, on the CPU.

    Networks fine-tuned from one initialization can be averaged as in model soups (Wortsman et al.
    2022, https://arxiv.org/abs/2203.05482), and with the initialization itself as in WiSE-FT
    (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).

    Integers, such as numbers of batches, are those of the last state.

    Args:
        states: tensors by name, of equal shapes.
        coefficients: weight of each state; they sum to 1.
    """
    mixed = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mixed[name] = last.cpu()
            continue
        # On the CPU: not every device has float64.
        parts = [
            s * state[name].cpu().double() for s, state in zip(coefficients, states, strict=True)
        ]
        mixed[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mixed


def choose_coefficients(
    losses: Sequence[Tensor], candidates: tuple[MixingCoefficients, ...] = CANDIDATE_COEFFICIENTS
) -> MixingCoefficients:
    """Return the coefficients with the lowest held-out loss, or the default.

    An average has to be better than the default by more than one standard error of the paired
    difference: few samples are noisy, and the default is seldom far from the best.

    Args:
        losses: for each of the candidates the loss of each held-out sample `[N]`.
        candidates: `CANDIDATE_COEFFICIENTS` or `SINGLE_MODELS`.
    """
    means = torch.stack([loss.mean() for loss in losses]).nan_to_num(nan=math.inf)
    best, count = int(means.argmin()), len(losses[0])
    if candidates is SINGLE_MODELS or means[0] == math.inf:
        return candidates[best]
    gain = losses[0] - losses[best]
    error = float(gain.std()) / math.sqrt(count) if count > 1 else math.inf
    return candidates[best] if float(gain.mean()) > error else candidates[0]


def format_percent(coefficients: Sequence[float]) -> str:
    """Format coefficients in percent.

    Example:
        >>> format_percent((0.25, 0.375, 0.375))
        '25/37.5/37.5'
    """
    return "/".join(f"{100 * one:g}" for one in coefficients)


def select_model(plan: FineTunePlan, folder: Path, *, keep_network: bool = True) -> SelectionResult:
    """Fine-tune, select epoch and average, and refit if the options say so.

    Args:
        plan: data, network, options and method.
        folder: folder of the run; files of the second candidate are in `weaker/`.
        keep_network: the network is used afterwards; if not, there is no refit.
    """
    candidates = plan.candidates
    refitting = keep_network and should_refit(plan.config, plan.setup.task)
    assert refitting or not (keep_network and plan.config.folds)  # no fold's network is final
    if len(candidates) == 1:
        chosen = select_epoch(plan, folder)
        if not refitting:
            return chosen
        chosen = dataclasses.replace(chosen, validation_results=())
        merged = merge_train_and_val(plan.setup)
        plan = dataclasses.replace(plan, setup=merged)
        result = refit(plan, folder, epoch=chosen.epoch)
        return dataclasses.replace(chosen, setup=merged, fine_tune_result=result, refitted=True)
    strong, weak = candidates
    folders = folder, folder / "weaker"
    return _average_candidates((strong, weak), folders, refitting=refitting)


def _average_candidates(
    plans: tuple[FineTunePlan, FineTunePlan],
    folders: tuple[Path, Path],
    *,
    refitting: bool,
) -> SelectionResult:
    found, setup = [], plans[0].setup
    for plan, folder in zip(plans, folders, strict=True):
        logger.info("strength %g", plan.strength)
        started = time.perf_counter()  # after the loop, of the second training
        try:
            found.append(select_epoch(plan, folder))
        except UserError as error:
            raise reworded(
                error,
                f"{message(error)} (one of two trainings of `strength=auto`, strength "
                f"{plan.strength:g}; `strength=1` trains once)",
            ) from error
    strong, weak = found
    same_head = plans[0].method.head_init == plans[1].method.head_init
    candidates = CANDIDATE_COEFFICIENTS if same_head else SINGLE_MODELS
    coefficients, losses, predictions = _evaluate_coefficients(strong, weak, plans[0], candidates)
    epoch = max(one.epoch * (c > 0) for one, c in zip(found, coefficients[1:], strict=True))
    chosen = dataclasses.replace(
        strong, epoch=epoch, predictions=predictions, refitted=False, validation_results=()
    )
    results = [one.fine_tune_result for one in found]
    epochs = (strong.epoch, weak.epoch)
    del found, strong, weak
    if refitting:
        elapsed = time.perf_counter() - started
        setup, results = merge_train_and_val(setup), []
        for plan, folder, last, c in zip(plans, folders, epochs, coefficients[1:], strict=True):
            started = time.perf_counter()
            merged = dataclasses.replace(plan, setup=setup)
            results.append(refit(merged, folder, epoch=last if c else 0))  # unused if c is 0
        started -= elapsed
        chosen = dataclasses.replace(chosen, setup=setup, refitted=True)
    search = StrengthSearch(
        strengths=(plans[0].strength or 0.0, plans[1].strength or 0.0),
        mixing_coefficients=coefficients,
        losses=losses,
        best_epochs=epochs,
        wall_time_s=round(time.perf_counter() - started, 1),
    )
    _log_search(search)
    return dataclasses.replace(
        chosen,
        fine_tune_result=_average_networks(results, coefficients, setup.device),
        strength_search=search,
    )


def _evaluate_coefficients(
    strong: SelectionResult,
    weak: SelectionResult,
    plan: FineTunePlan,
    candidates: tuple[MixingCoefficients, ...],
) -> tuple[MixingCoefficients, dict[str, float], Tensor]:
    """Return the best coefficients, the held-out losses of all, and the best's predictions."""
    task_type, targets = strong.setup.task.task_type, strong.held_out.targets
    parts: dict[MixingCoefficients, list[Tensor]] = {one: [] for one in candidates}
    for (setup, one), (_, other) in zip(
        strong.validation_results, weak.validation_results, strict=True
    ):
        loader = plan.loaders.eval_dataloader(setup.task.val)
        for coefficients, found in parts.items():
            network = _average_networks([one, other], coefficients, setup.device).network
            found.append(predict_dataloader(network, loader, task_type))
    pooled = {one: torch.cat(found) for one, found in parts.items()}
    losses = {
        one: task_type.held_out_losses(task_type.logits(found), targets)
        for one, found in pooled.items()
    }
    best = choose_coefficients(list(losses.values()), candidates)
    means = {format_percent(one): round(float(loss.mean()), 6) for one, loss in losses.items()}
    return best, means, pooled[best]


def _average_networks(
    results: Sequence[FineTuneResult], coefficients: MixingCoefficients, device: torch.device
) -> FineTuneResult:
    """Return the weighted average of the initialization and the trained networks."""
    states = [results[0].initial_state, *(one.network.state_dict() for one in results)]
    network = copy.deepcopy(results[0].network)
    network.load_state_dict(average_states(states, coefficients))
    move_to_device(network, device)
    return dataclasses.replace(results[0], network=network)


def _log_search(search: StrengthSearch) -> None:
    strong, weak = search.strengths
    if format_percent(CANDIDATE_COEFFICIENTS[0]) not in search.losses:
        why = "the lowest validation loss"
    elif search.mixing_coefficients == CANDIDATE_COEFFICIENTS[0]:
        why = "an equal average, as no other is clearly better"
    else:
        why = "clearly better than an equal average"
    logger.info(
        "strength auto: %s percent of initialization, strength %g and strength %g: %s",
        format_percent(search.mixing_coefficients),
        strong,
        weak,
        why,
    )
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in search.losses.items())
    logger.info("         validation loss %s; took %.0f seconds", losses, search.wall_time_s)
