"""Which trainings to average: of folds, on all images, of several strengths, and both.

    python benchmarks/averages.py --shared data --sets trashnet@2x20,dtd10 --seeds 0,1
    python benchmarks/averages.py --strengths 1,0 --lr 0.0005 --out runs/averages-0.0005

For each set and seed, each strength is trained on every fold and on all images, by the recipe of
`delta-transfer train`; the table has the test accuracy of the averages of their weights. `chosen`
is what the rule of docs/selection.md takes from all strengths (its shares of the start included),
averaged over folds and the trainings on all images. Strength 0 is LP-FT with DELTA's head term.
Rerunning the same command resumes.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from image_sets import ImageSet, add_set_options
from torch import Tensor

from delta_transfer.config.commands import parse_seeds
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.task import Split
from delta_transfer.runs.fine_tune import fine_tune
from delta_transfer.runs.model_soup import (
    Mixture,
    State,
    average_states,
    choose_mixture,
    mixtures,
)
from delta_transfer.runs.plan import FineTunePlan, make_plan
from delta_transfer.runs.preparation.folds import training_pool
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from delta_transfer.training.inference import predict_dataloader
from delta_transfer.utils.files import write_atomically

PARTS = ("one fold", "folds", "all images", "both")
Accuracies = dict[str, float]
"""Test accuracy as a fraction by the column of the table."""


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("delta_transfer").setLevel(logging.WARNING)
    found: dict[str, list[Accuracies]] = {}
    for image_set, seed in itertools.product(options.sets, parse_seeds(options.seeds)):
        file = options.out / image_set.folder_name / f"seed{seed}.json"
        if not file.is_file():
            logging.info("=== %s, seed %d", image_set, seed)
            measured = measure(options, image_set, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(measured, indent=2))
        found.setdefault(str(image_set), []).append(json.loads(file.read_text()))
    print("\n".join(table(found)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_set_options(parser)
    parser.add_argument("--strengths", type=_strengths, default="1,0.1,0")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/averages"))
    return parser.parse_args()


def _strengths(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def measure(options: argparse.Namespace, image_set: ImageSet, seed: int) -> Accuracies:
    """Train on one set with one seed, and return the test accuracy of each average."""
    size = options.samples_per_class[0] if image_set.tiny is None else None
    config = TrainOptions(
        data=image_set.data(options.shared, options.out, seed=seed),
        model=options.model,
        image_size=options.image_size,
        samples_per_class=size,
        folds=3,
        lr=options.lr,
        seed=seed,
        device=options.device,
    ).resolve()
    setup = prepare(config)
    plan = make_plan(setup, config)
    pool = training_pool(config, setup.task)
    folder = options.out / image_set.folder_name / f"seed{seed}"
    numbers = range(len(options.strengths))
    candidates = [
        dataclasses.replace(
            plan, config=dataclasses.replace(config, strength=strength), data_order=number
        )
        for number, strength in enumerate(options.strengths)
    ]
    choices = mixtures(len(candidates), averaged=True)
    outputs: dict[Mixture, list[Tensor]] = {choice: [] for choice in choices}
    folds = []
    for number, held_out in enumerate(plan.held_out_setups):
        states = train_all(candidates, held_out, folder / f"fold{number}")
        folds.append(states)
        for choice in choices:
            outputs[choice].append(predict(plan, average_states(states, choice), held_out.task.val))
    whole = resplit(setup, train=pool, val=pool)
    on_all = train_all(candidates, whole, folder / "all")
    task_type, targets = setup.task.task_type, plan.held_out.targets
    losses = {
        choice: task_type.held_out_losses(task_type.logits(torch.cat(found)), targets)
        for choice, found in outputs.items()
    }
    chosen = choose_mixture(losses)
    subsets = [
        subset
        for size in (1, 2, len(candidates))
        for subset in itertools.combinations(numbers, size)
    ]
    accuracies = {"probe": whole.probe_scores["test"] or 0.0}
    for subset, part in itertools.product(dict.fromkeys(subsets), PARTS):
        equal = (0.0, *(float(number in subset) / len(subset) for number in numbers))
        name = "+".join(f"{options.strengths[number]:g}" for number in subset)
        accuracies[f"{name}, {part}"] = score(plan, states_of(part, folds, on_all), equal)
    accuracies["chosen"] = score(plan, states_of("both", folds, on_all), chosen)
    return accuracies


def train_all(candidates: Sequence[FineTunePlan], setup: RunSetup, folder: Path) -> list[State]:
    """Return the weights at the start and after the training with each strength."""
    states: list[State] = []
    for plan in candidates:
        own = dataclasses.replace(plan, setup=setup)
        result = fine_tune(own, folder / f"strength-{plan.strength:g}", validate=False)
        states = states or [dict(result.initial_state)]
        states.append({name: tensor.cpu() for name, tensor in result.network.state_dict().items()})
    return states


def states_of(part: str, folds: Sequence[Sequence[State]], on_all: Sequence[State]) -> list[State]:
    """Return the start and the weights of each strength, averaged over some trainings."""
    parts = {
        "one fold": folds[:1],
        "folds": folds,
        "all images": [on_all],
        "both": [*folds, on_all],
    }
    each = parts[part]
    return [
        average_states(states, [1 / len(each)] * len(each)) for states in zip(*each, strict=True)
    ]


def score(plan: FineTunePlan, states: Sequence[State], mixture: Mixture) -> float:
    """Return the test accuracy of an average."""
    task = plan.setup.task
    assert task.test is not None
    predictions = predict(plan, average_states(states, mixture), task.test)
    return task.task_type.score(predictions, task.test.targets, "accuracy")


def predict(plan: FineTunePlan, state: State, split: Split) -> Tensor:
    network = plan.setup.backbone.module
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(dict(state))
    try:
        loader = plan.loaders.eval_dataloader(split)
        return predict_dataloader(network.to(plan.setup.device), loader, plan.setup.task.task_type)
    finally:
        network.load_state_dict(before)


def table(found: Mapping[str, Sequence[Accuracies]]) -> list[str]:
    """Return a row for each average: accuracy on each set, the mean, and that less the probe."""
    sets = list(found)
    lines = [
        f"| | {' | '.join(sets)} | mean | vs probe | worst |",
        f"|---{'|--:' * (len(sets) + 3)}|",
    ]
    for name in found[sets[0]][0]:
        means = [statistics.fmean(run[name] for run in found[one]) for one in sets]
        margins = [run[name] - run["probe"] for one in sets for run in found[one]]
        mean, margin = statistics.fmean(means), statistics.fmean(margins)
        cells = [f"{100 * value:.1f}" for value in (*means, mean)]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {100 * margin:+.1f} | {100 * min(margins):+.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()
