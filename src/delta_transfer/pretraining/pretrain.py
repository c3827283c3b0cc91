"""Pretrain a network on unlabelled graphs; `train --weights` loads the result."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from delta_transfer.backbones.base import state_tensors
from delta_transfer.backbones.graph_network import GraphNetwork
from delta_transfer.backbones.registry import find_graph_loader, load_graph_backbone
from delta_transfer.backbones.weights_file import read_weights
from delta_transfer.config.commands import PretrainOptions
from delta_transfer.errors import ConfigError, DataError
from delta_transfer.pretraining.attribute_masking import AttributeMasking
from delta_transfer.pretraining.base import BatchScore, MeanScore, PretextTask, average_scores
from delta_transfer.pretraining.context_prediction import ContextPrediction
from delta_transfer.pretraining.data import UnlabelledGraphs, read_unlabelled
from delta_transfer.runs.folder import check_output_location, data_name, free_folder, time_stamp
from delta_transfer.utils.devices import find_device
from delta_transfer.utils.environment import describe
from delta_transfer.utils.files import to_csv, write_atomically
from delta_transfer.utils.logging import log_to
from delta_transfer.utils.module_state import eval_mode
from delta_transfer.utils.seeds import derive_seed

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from torch_geometric.data import Data

    from delta_transfer.data.graphs.batch import GraphBatch


WEIGHTS, CONFIG, METRICS, LOG = "weights.safetensors", "config.json", "metrics.csv", "train.log"
_HELD_OUT_FRACTION = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """The result of a pretraining, measured on held-out graphs.

    Args:
        folder: the folder of its files.
        metric_name: name of the score.
        chance: scores of constant predictions.
        before: scores of the network before training.
        after: scores of the trained network.
    """

    folder: Path
    metric_name: str
    chance: MeanScore
    before: MeanScore
    after: MeanScore


@dataclass(frozen=True, kw_only=True, eq=False)
class _PretrainJob:
    """A network, its pretext task and its data.

    Args:
        options: the user's options.
        network: the network, on its device.
        pretext_task: the pretext task, on the same device.
        graphs: graphs for training.
        held_out: graphs for evaluation.
        device: the device.
    """

    options: PretrainOptions
    network: GraphNetwork
    pretext_task: PretextTask
    graphs: "Sequence[Data]"
    held_out: "Sequence[Data]"
    device: torch.device


def pretrain(options: PretrainOptions) -> PretrainResult:
    """Train a network on unlabelled graphs and write its weights, without a head.

    A tenth of the graphs is held out for evaluation. On the CPU equal options produce equal bytes.

    Raises:
        UserError: if an option, the data or the network is invalid, the folder cannot be written,
            or training diverges.
    """
    folder = _check_folder(options)
    device = find_device(options.device)
    find_graph_loader(options.model)  # fail before anything slow
    if options.weights is not None:
        read_weights(options.weights)
    data = read_unlabelled(options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(options.seed, "pretrain", "weights"))
        backbone = load_graph_backbone(
            options.model,
            num_outputs=1,
            spec=data.spec,
            pretrained=False,
            weights=options.weights,
        )
        assert isinstance(backbone.module, GraphNetwork)
        graphs, held_out = _hold_out(data.graphs, options.seed)
        task = _make_pretext_task(options, data, graphs, backbone.module)
    job = _PretrainJob(
        options=options,
        network=backbone.module.to(device),
        pretext_task=task.to(device),
        graphs=graphs,
        held_out=held_out,
        device=device,
    )
    _check_trainable(job)
    folder.mkdir(parents=True, exist_ok=True)
    with log_to(folder / LOG, describe()):
        logger.info(
            "data     %s: %d graphs, %d of them held out",
            options.data,
            len(data.graphs),
            len(held_out),
        )
        for note in (*data.notes, *backbone.notes):
            logger.info("         %s", note)
        logger.info("model    %s, on %s", options.model, device)
        return _run(job, folder)


def _run(job: _PretrainJob, folder: Path) -> PretrainResult:
    chance, before = _evaluate(job, use_network=False), _evaluate(job)
    _log_epoch(0, before, job)
    rows: list[tuple[object, ...]] = [(0, "", before.loss, before.score)]
    optimizer = torch.optim.Adam(
        [*job.network.parameters(), *job.pretext_task.parameters()], lr=job.options.lr
    )
    # Without a final rate near zero the last weights depend on the noise of the last steps.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.options.epochs)
    after = before
    for epoch in range(1, job.options.epochs + 1):
        loss = _train(job, optimizer, epoch)
        schedule.step()
        after = _evaluate(job)
        if not math.isfinite(loss) or not math.isfinite(after.loss):
            raise ConfigError(
                f"pretraining diverged in epoch {epoch} (loss {loss:g}): try a smaller value than "
                f"`lr={job.options.lr:g}`"
            )
        rows.append((epoch, loss, after.loss, after.score))
        _log_epoch(epoch, after, job)
    found = PretrainResult(
        folder=folder,
        metric_name=job.pretext_task.metric_name,
        chance=chance,
        before=before,
        after=after,
    )
    _write(found, job, rows)
    return found


def _check_trainable(job: _PretrainJob) -> None:
    """Raise DataError if the training graphs or the held-out graphs have no targets."""
    for subset, graphs in (("training", job.graphs), ("held-out", job.held_out)):
        generator = _generator(job.options.seed, "measure")
        with eval_mode(job.network), eval_mode(job.pretext_task), torch.no_grad():
            scores = (
                job.pretext_task(job.network, part, generator) for part in _batches(graphs, job)
            )
            has_targets = any(scored is not None for scored in scores)
        if not has_targets:
            edges = max(1, len(job.network.layers) - 1)
            raise DataError(
                f"`objective={job.options.objective}` needs two graphs with nodes at least {edges} "
                f"edges apart, which the {len(graphs)} {subset} graphs lack: use "
                "`objective=attribute-masking`, more graphs, or a `model` with fewer layers "
                "(pyg/GIN-2x64)"
            )


def _train(job: _PretrainJob, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    """Train for one epoch, with order and targets drawn from seed and epoch."""
    seed = job.options.seed
    order = torch.randperm(len(job.graphs), generator=_generator(seed, "order", epoch))
    generator = _generator(seed, "questions", epoch)
    job.network.train()
    job.pretext_task.train()
    parts = []
    for graphs in _batches([job.graphs[i] for i in order.tolist()], job):
        if len(graphs.x) == 1:  # batch norm needs two nodes
            continue
        scored = job.pretext_task(job.network, graphs, generator)
        if scored is None:
            continue
        optimizer.zero_grad()
        scored.loss.backward()
        optimizer.step()
        parts.append(dataclasses.replace(scored, loss=scored.loss.detach()))
    return average_scores(parts).loss


def _evaluate(job: _PretrainJob, *, use_network: bool = True) -> MeanScore:
    """Return the means over the held-out graphs, with the same targets each time."""
    generator = _generator(job.options.seed, "measure")

    def score(graphs: "GraphBatch") -> BatchScore | None:
        if not use_network:
            return job.pretext_task.score_baseline(graphs, generator)
        scored: BatchScore | None = job.pretext_task(job.network, graphs, generator)
        return scored

    with eval_mode(job.network), eval_mode(job.pretext_task), torch.no_grad():
        return average_scores([score(graphs) for graphs in _batches(job.held_out, job)])


def _batches(graphs: "Sequence[Data]", job: _PretrainJob) -> "Iterator[GraphBatch]":
    from delta_transfer.data.graphs.batch import GraphBatch

    size = job.options.batch_size
    for start in range(0, len(graphs), size):
        yield GraphBatch.from_data_list(graphs[start : start + size]).to(job.device)


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "pretrain", *purpose))


def _hold_out(graphs: "Sequence[Data]", seed: int) -> "tuple[list[Data], list[Data]]":
    """Split graphs into those for training and those for evaluation."""
    order = torch.randperm(len(graphs), generator=_generator(seed, "held out")).tolist()
    count = max(1, round(_HELD_OUT_FRACTION * len(graphs)))
    return [graphs[i] for i in sorted(order[count:])], [graphs[i] for i in sorted(order[:count])]


def _make_pretext_task(
    options: PretrainOptions,
    data: UnlabelledGraphs,
    graphs: "Sequence[Data]",
    network: GraphNetwork,
) -> PretextTask:
    if options.objective == "context-prediction":
        other = load_graph_backbone(options.model, num_outputs=1, spec=data.spec, pretrained=False)
        assert isinstance(other.module, GraphNetwork)
        return ContextPrediction(other.module)
    x = torch.cat([graph.x for graph in graphs])
    width = network.head.in_features
    return AttributeMasking(data.spec, x, width=width, rate=options.mask_rate)


def _log_epoch(epoch: int, found: MeanScore, job: _PretrainJob) -> None:
    logger.info(
        "epoch    %d: loss %.4f, %s %.4f on held-out graphs",
        epoch,
        found.loss,
        job.pretext_task.metric_name,
        found.score,
    )


def _check_folder(options: PretrainOptions) -> Path:
    """Return the folder for the files.

    Raises:
        UserError: if it is in use.
    """
    if options.out is None:
        return free_folder(f"pretrain-{data_name(options.data)}-{time_stamp()}")
    folder = Path(options.out).expanduser()
    check_output_location(folder, data=options.data)
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = min(files - {WEIGHTS, CONFIG, METRICS, LOG}, default=None)
    if foreign is not None:
        raise ConfigError(
            f"`out={folder}` contains files that are not of a pretraining ({foreign}): use another "
            "folder"
        )
    if files and not options.overwrite:
        raise ConfigError(
            f"`out={folder}` is not empty: use another folder, or `overwrite` to replace the "
            "pretraining there"
        )
    return folder


def _write(found: PretrainResult, job: _PretrainJob, rows: Sequence[tuple[object, ...]]) -> None:
    """Write all files, the weights last, so that they are never there without the others."""
    columns = ("epoch", "loss", "held_out_loss", "held_out_score")
    write_atomically(found.folder / METRICS, to_csv([columns, *rows]))
    options = dataclasses.asdict(job.options)
    scores = {name: value for name, value in dataclasses.asdict(found).items() if name != "folder"}
    config = {name: options[name] for name in options if name not in ("out", "overwrite")}
    counts = {
        "num_train_graphs": len(job.graphs),
        "num_held_out_graphs": len(job.held_out),
    }
    write_atomically(found.folder / CONFIG, json.dumps(config | counts | scores, indent=2) + "\n")
    state = {
        name: tensor.cpu().contiguous().clone()
        for name, tensor in state_tensors(job.network).items()
        if not name.startswith("head.")
    }
    write_atomically(found.folder / WEIGHTS, save(state, metadata={"format": "pt"}))
