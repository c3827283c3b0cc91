"""The final network of a run: complete trainings, averages of their weights, or the start."""

import copy
import csv
import dataclasses
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from delta_transfer.data.images.loader import DeviceDataLoader
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError, reworded
from delta_transfer.metrics.run_result import ModelSelection
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.fine_tune import FineTuneResult, fine_tune, initialize_network
from delta_transfer.runs.model_soup import (
    Mixture,
    State,
    average_states,
    choose_mixture,
    format_percent,
    has_loss_barrier,
    mixtures,
)
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.folds import training_pool
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from delta_transfer.runs.source_classes import predict_with_source_classes, source_classes
from delta_transfer.training.inference import predict_dataloader
from delta_transfer.utils.distributed import is_rank_zero, shard_and_gather
from delta_transfer.utils.files import write_atomically

logger = logging.getLogger(__name__)

FINAL_FOLDER = "final"
"""The folder, in that of a run, of a last training on all samples."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelectionResult:
    """The final network of a run, and predictions for held-out samples.

    Args:
        setup: the data that it was trained on, and the probe on the same data.
        network: the final network.
        taps: the modules whose features were compared or measured.
        held_out: the validation split; with folds all samples, each held out once.
        num_folds: number of folds; if there are any, the final network was trained on all samples.
        predictions: for the held-out samples `[N, K]`, by networks not trained on them, averaged in
            the same way as the final one.
        probe_predictions: for the same samples, by linear probes not trained on them.
        model_selection: how it was chosen; None if nothing was trained.
    """

    setup: RunSetup
    network: nn.Module
    taps: tuple[str, ...]
    held_out: Split
    num_folds: int
    predictions: Tensor
    probe_predictions: Tensor
    model_selection: ModelSelection | None


def select_model(plan: FineTunePlan, folder: Path, *, keep_network: bool = True) -> SelectionResult:
    """Train every candidate on every fold, and average or choose by held-out losses.

    Every training runs to the end of its schedule: no network is taken from the middle of one.

    Args:
        plan: data, network, options and method.
        folder: folder of the run; files of folds are in `folds/`, those of all candidates but the
            first in folders of their own.
        keep_network: the network is used afterwards; if not, there is no training on all samples.

    Raises:
        UserError: if a training diverges, or the network does not suit the method.
    """
    setups, candidates = plan.held_out_setups, plan.candidates
    choices = _choices(plan)
    outputs: dict[Mixture, list[Tensor]] = {one: [] for one in choices}
    agreements: dict[Mixture, list[Tensor]] = {one: [] for one in choices}
    means: list[State] = []
    for number, setup in enumerate(setups, start=1):
        if plan.folds:
            logger.info("fold     %d of %d", number, plan.folds)
        place = folder / "folds" / str(number) if plan.folds else folder
        results = [
            _train(dataclasses.replace(one, setup=setup), candidate_folder(place, one), plan)
            for one in candidates
        ]
        network = copy.deepcopy(results[0].network)
        states = [results[0].initial_state, *(_on_cpu(one.network) for one in results)]
        known = _known_source_classes(setup)
        for one in choices:
            network.load_state_dict(average_states(states, one))
            predictions, agrees = _predict_held_out(plan, network, setup, known)
            outputs[one].append(predictions)
            if agrees is not None:
                agreements[one].append(agrees)
        pairs = zip(means or states, states, strict=True)
        means = [average_states(pair, (1 - 1 / number, 1 / number)) for pair in pairs]
    if plan.folds and plan.method.trains_network and is_rank_zero():
        _average_curves(plan, folder)
    held_out, probe = plan.held_out, plan.held_out_probe_predictions
    chosen, selection = _choose(plan, outputs, agreements, held_out)
    final = _merged(plan) if plan.folds else plan.setup
    if chosen[0] == 1:
        # With the probe on all samples as its head, not the average of those of the folds.
        network = initialize_network(dataclasses.replace(candidates[0], setup=final))
    elif plan.folds and keep_network:
        selection = _train_on_all(plan, final, folder, selection, network, means)
    else:
        network.load_state_dict(average_states(means, chosen))
    if plan.folds and is_rank_zero():
        _keep_attention(folder)
    chosen = selection.mixing_coefficients
    return SelectionResult(
        setup=final,
        network=network,
        taps=results[0].taps,
        held_out=held_out,
        num_folds=plan.folds,
        predictions=torch.cat(outputs[chosen]),
        probe_predictions=probe,
        model_selection=selection if plan.method.trains_network else None,
    )


def candidate_folder(folder: Path, plan: FineTunePlan) -> Path:
    """Return the folder of a candidate run: the first one has no folder of its own."""
    return folder / f"strength-{plan.strength:g}" if plan.data_order else folder


def _merged(plan: FineTunePlan) -> RunSetup:
    """Return the setup with all samples that may be trained on."""
    pool = training_pool(plan.config, plan.setup.task)
    return resplit(plan.setup, train=pool, val=pool)


def _choices(plan: FineTunePlan) -> tuple[Mixture, ...]:
    """Return the mixtures to choose from, of the initialization and the candidates."""
    if not plan.method.trains_network:
        return ((1.0, 0.0),)  # with the probe on all samples
    if plan.config.paper_protocol:
        return ((0.0, 1.0),)
    # Networks with different initial heads are too far apart to be averaged.
    averaged = plan.averages_weights and _same_heads(plan)
    found = mixtures(len(plan.candidates), averaged=averaged)
    # The start alone is a result if its head is the linear probe, not if it is random.
    return found[:-1] if plan.candidates[0].method.head_init == "random" else found


def _same_heads(plan: FineTunePlan) -> bool:
    return len({one.method.head_init for one in plan.candidates}) == 1


def _train(
    plan: FineTunePlan, folder: Path, whole: FineTunePlan, *, validate: bool = True
) -> FineTuneResult:
    if len(whole.candidates) > 1:
        logger.info("strength %g", plan.strength)
    try:
        result = fine_tune(plan, folder, validate=validate)
    except UserError as error:
        if len(whole.candidates) == 1:
            raise
        raise reworded(
            error,
            f"{error} (one of {len(whole.candidates)} trainings of --strength auto, strength "
            f"{plan.strength:g}; --strength 1 trains once)",
        ) from error
    result.network.cpu()  # there may be many
    return result


def _known_source_classes(setup: RunSetup) -> Tensor | None:
    """Return the classes `[N]` that the pretrained network has for the held-out images.

    They follow from cached features. None without the classifier of pretraining.
    """
    classifier = setup.backbone.classifier
    if setup.task.kind != "images" or classifier is None:
        return None
    views, _ = setup.features["val"]
    return source_classes(classifier, views[:, 0])  # of the original images, not the flipped ones


def _predict_held_out(
    plan: FineTunePlan, network: nn.Module, setup: RunSetup, known: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return predictions for a setup's held-out samples, and whether the pretrained network agrees.

    Args:
        plan: the options.
        network: the network.
        setup: of the fold.
        known: the pretrained network's classes `[N]`; None if unknown.

    Returns:
        Predictions `[N, K]`, and booleans `[N]`, or None without `known`.
    """
    classifier, split, task_type = setup.backbone.classifier, setup.task.val, setup.task.task_type
    if known is None or classifier is None:
        return _predict(plan, network, split), None

    def predict(loader: DeviceDataLoader) -> tuple[Tensor, Tensor]:
        return predict_with_source_classes(
            network, loader, task_type, head=setup.backbone.head, classifier=classifier
        )

    predictions, classes = _predict_in_shards(plan, network, split, predict)
    return predictions, classes == known


def _predict(plan: FineTunePlan, network: nn.Module, split: Split) -> Tensor:
    """Return predictions `[N, K]`, each process making its share."""
    task_type = plan.setup.task.task_type

    def predict(loader: DeviceDataLoader) -> tuple[Tensor]:
        return (predict_dataloader(network, loader, task_type),)

    return _predict_in_shards(plan, network, split, predict)[0]


def _predict_in_shards(
    plan: FineTunePlan,
    network: nn.Module,
    split: Split,
    predict: Callable[[DeviceDataLoader], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Return what `predict` returns for all samples, each process making its share."""
    network.to(plan.setup.device)
    return shard_and_gather(
        len(split),
        plan.config.batch_size,
        lambda positions: predict(plan.loaders.eval_dataloader(split.subset(positions))),
    )


def _choose(
    plan: FineTunePlan,
    outputs: dict[Mixture, list[Tensor]],
    agreements: dict[Mixture, list[Tensor]],
    held_out: Split,
) -> tuple[Mixture, ModelSelection]:
    """Return the chosen mixture, and what was chosen from.

    Args:
        plan: data, options and method.
        outputs: by mixture, predictions `[N, K]` of each fold.
        agreements: by mixture, booleans `[N]` of each fold; empty lists if they are unknown.
        held_out: the samples of all folds.
    """
    task_type, targets = plan.setup.task.task_type, held_out.targets
    losses = {
        one: task_type.held_out_losses(task_type.logits(torch.cat(found)), targets)
        for one, found in outputs.items()
    }
    # Of networks with different initial heads the first one is no better a guess.
    chosen = choose_mixture(losses, tolerance=1.0 if _same_heads(plan) else 0.0)
    selection = ModelSelection(
        strengths=tuple(one.strength for one in plan.candidates),
        mixing_coefficients=chosen,
        losses={format_percent(one): round(float(loss.mean()), 6) for one, loss in losses.items()},
        folds=plan.folds,
        averaged=plan.averages_weights,
        averages_folds=False,
        accuracies={
            format_percent(one): task_type.score(torch.cat(found), targets, "accuracy")
            for one, found in outputs.items()
            if isinstance(task_type, Multiclass)
        },
        agreements={
            format_percent(one): float(torch.cat(found).double().mean())
            for one, found in agreements.items()
            if found
        },
    )
    if len(outputs) > 1:
        _log_selection(selection, default=next(iter(losses)))
    return chosen, selection


def _train_on_all(
    plan: FineTunePlan,
    setup: RunSetup,
    folder: Path,
    selection: ModelSelection,
    network: nn.Module,
    fold_means: Sequence[State],
) -> ModelSelection:
    """Train what was chosen on all samples, and average it with the networks of the folds.

    Weights that have moved far apart cannot be averaged, which held-out losses of single folds do
    not show. So no average is used whose loss on all samples is above the mean loss of its parts.

    Args:
        plan: data, network, options and method.
        setup: with all samples.
        folder: folder of the run.
        selection: what was chosen.
        network: gets the final weights.
        fold_means: the means over folds of the initializations and of each candidate.

    Returns:
        The selection that led to the final weights.
    """
    task, shares = setup.task, selection.mixing_coefficients
    logger.info("final    training on all %d %ss", len(task.train), task.sample_type)
    epochs = plan.config.count_epochs(len(task.train))  # fewer, if a number of steps decides
    candidates = [dataclasses.replace(one, setup=setup, epochs=epochs) for one in plan.candidates]
    states = [_on_cpu(initialize_network(candidates[0]))] * len(shares)
    for number, (candidate, share) in enumerate(zip(candidates, shares[1:], strict=True), start=1):
        if share:
            place = candidate_folder(folder / FINAL_FOLDER, candidate)
            states[number] = _on_cpu(_train(candidate, place, plan, validate=False).network)

    def losses(state: State) -> Tensor:
        network.load_state_dict(state)
        logits = task.task_type.logits(_predict(plan, network, task.train))
        return task.task_type.held_out_losses(logits, task.train.targets)

    average = average_states(states, shares)
    if not (plan.averages_weights and _same_heads(plan)):
        network.load_state_dict(average)  # of one training alone
        return selection
    parts = [
        float(losses(state).mean()) if share else 0.0
        for state, share in zip(states, shares, strict=True)
    ]
    if has_loss_barrier(losses(average), parts, shares):
        numbers = range(len(shares))
        singles = [tuple(float(i == n) for i in numbers) for n in numbers if n and shares[n]]
        shares = min(singles, key=lambda one: selection.losses[format_percent(one)])
        selection = dataclasses.replace(selection, mixing_coefficients=shares)
        average = average_states(states, shares)
        logger.info(
            "weights  %s percent: the average has a higher loss on all %ss than its parts",
            *(format_percent(shares), task.sample_type),
        )
    # A network of a fold has a held-out loss on the samples of this fold.
    folds, loss = plan.folds, float(losses(average).mean())
    fold_loss = loss + (selection.losses[format_percent(shares)] - loss) / folds
    weights = (1 / (folds + 1), folds / (folds + 1))
    with_folds = average_states([average, average_states(fold_means, shares)], weights)
    averages_folds = not has_loss_barrier(losses(with_folds), (loss, fold_loss), weights)
    if not averages_folds:
        logger.info(
            "weights  of the training on all %ss alone: the average with those of the folds has a "
            "higher loss on them",
            task.sample_type,
        )
    network.load_state_dict(with_folds if averages_folds else average)
    return dataclasses.replace(selection, averages_folds=averages_folds)


def _keep_attention(folder: Path) -> None:
    """Move the channel attention on all samples, or else of the first fold, to a run's folder."""
    name = "attention.safetensors"
    for place in (folder / FINAL_FOLDER, folder / "folds" / "1"):
        if (place / name).is_file():
            (place / name).replace(folder / name)
            return


def _on_cpu(network: nn.Module) -> State:
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


def _log_selection(selection: ModelSelection, *, default: Mixture) -> None:
    chosen = selection.mixing_coefficients
    if chosen[0] == 1:
        why = "no training was better than the start, the linear probe"
    elif chosen == default:
        why = "the default, as nothing else is clearly better"
    else:
        why = "clearly better than the default on held-out samples"
    logger.info(
        "weights  %s percent of the start and of strength %s: %s",
        format_percent(chosen),
        ", ".join("-" if one is None else f"{one:g}" for one in selection.strengths),
        why,
    )


def _average_curves(plan: FineTunePlan, folder: Path) -> None:
    """Write the means over folds of what each candidate recorded in its epochs."""
    for candidate in plan.candidates:
        for name, keys in (("metrics.csv", ["epoch"]), ("drift.csv", ["epoch", "tap"])):
            places = [
                candidate_folder(folder / "folds" / str(number), candidate) / name
                for number in range(1, plan.folds + 1)
            ]
            target = candidate_folder(folder, candidate) / name
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, _average([path for path in places if path.is_file()], keys))


def _average(files: Sequence[Path], keys: Sequence[str]) -> str:
    """Return the mean of CSV files over rows with the same values in the key columns."""
    rows: dict[tuple[tuple[str, ...], tuple[str, ...]], list[dict[str, str]]] = {}
    columns: dict[str, None] = {}
    for file in files:
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                columns |= dict.fromkeys(row)
                given = tuple(name for name, text in row.items() if text)
                rows.setdefault((tuple(row[key] for key in keys), given), []).append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for (values, given), group in rows.items():
        means = {
            name: _mean([float(row[name]) for row in group]) for name in given if name not in keys
        }
        writer.writerow({**means, **dict(zip(keys, values, strict=True))})
    return text.getvalue()


def _mean(values: Sequence[float]) -> str:
    """Return the mean without NaN, as of folds with one class and no ROC-AUC; "" if all are."""
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.8g}" if known else ""
