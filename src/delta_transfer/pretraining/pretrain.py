"""Pretraining of a network on graphs without labels: weights that `train --weights` takes."""

import csv
import dataclasses
import io
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
from delta_transfer.errors import UserError
from delta_transfer.pretraining.attribute_masking import AttributeMasking
from delta_transfer.pretraining.base import BatchScore, MeanScore, PretextTask, average_scores
from delta_transfer.pretraining.context_prediction import ContextPrediction
from delta_transfer.pretraining.data import UnlabelledGraphs, read_unlabelled
from delta_transfer.runs.folder import check_output_location, data_name, free_folder, time_stamp
from delta_transfer.utils.devices import find_device
from delta_transfer.utils.environment import describe
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.logging import log_to
from delta_transfer.utils.module_state import eval_mode
from delta_transfer.utils.seeds import derive_seed

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from torch_geometric.data import Data

    from delta_transfer.data.graphs.batch import GraphBatch


WEIGHTS, CONFIG, METRICS, LOG = "weights.safetensors", "config.json", "metrics.csv", "train.log"
HELD_OUT_FRACTION = 0.1  # share of the graphs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What a pretraining comes to; figures are of the graphs that were held out.

    Args:
        folder: its files.
        metric_name: what scores are.
        chance: of who sees nothing of the graphs.
        before: of the network as it started.
        after: of the network at the end.
    """

    folder: Path
    metric_name: str
    chance: MeanScore
    before: MeanScore
    after: MeanScore


@dataclass(frozen=True, kw_only=True, eq=False)
class _PretrainJob:
    """What is trained, and on what.

    Args:
        options: those given.
        network: on its device.
        pretext_task: likewise.
        graphs: to learn from.
        held_out: to measure by.
        device: where graphs are moved to.
    """

    options: PretrainOptions
    network: GraphNetwork
    pretext_task: PretextTask
    graphs: "Sequence[Data]"
    held_out: "Sequence[Data]"
    device: torch.device


def pretrain(options: PretrainOptions) -> PretrainResult:
    """Trains a network on graphs without labels and writes its weights, which have no head.

    A tenth of the graphs is held out to measure by. On the CPU equal options give equal bytes.

    Raises:
        UserError: if an option, the data or the network is not as it must be, the folder may not
            be written, or training diverges.
    """
    folder = _check_folder(options)
    device = find_device(options.device)
    find_graph_loader(options.model)  # before anything slow begins
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
    # Without an end at zero the last weights are those of one noisy step after many.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.options.epochs)
    after = before
    for epoch in range(1, job.options.epochs + 1):
        loss = _train(job, optimizer, epoch)
        schedule.step()
        after = _evaluate(job)
        if not math.isfinite(loss) or not math.isfinite(after.loss):
            raise UserError(
                f"pretraining diverged in epoch {epoch} (loss {loss:g}): try a smaller --lr than "
                f"{job.options.lr:g}"
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
    """Checks that there are questions about the graphs.

    Raises:
        UserError: if there are none about those to learn from, or those held out.
    """
    for what, graphs in (("to learn from", job.graphs), ("held out", job.held_out)):
        generator = _generator(job.options.seed, "measure")
        with eval_mode(job.network), eval_mode(job.pretext_task), torch.no_grad():
            scores = (
                job.pretext_task(job.network, part, generator) for part in _batches(graphs, job)
            )
            asked = any(scored is not None for scored in scores)
        if not asked:
            edges = max(1, len(job.network.layers) - 1)
            raise UserError(
                f"--objective {job.options.objective}: there is nothing to ask about the "
                f"{len(graphs)} graphs {what}, as in two of them or more a node with another one "
                f"at least {edges} edges away is needed: take --objective attribute-masking, more "
                "graphs, or a --model with fewer layers, such as pyg/GIN-2x64"
            )


def _train(job: _PretrainJob, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    """One pass over the graphs, in an order and with questions that seed and epoch determine."""
    seed = job.options.seed
    order = torch.randperm(len(job.graphs), generator=_generator(seed, "order", epoch))
    generator = _generator(seed, "questions", epoch)
    job.network.train()
    job.pretext_task.train()
    parts = []
    for graphs in _batches([job.graphs[i] for i in order.tolist()], job):
        if len(graphs.x) == 1:  # of which batch norm has no variance
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
    """Means over the graphs held out, of which the same is asked each time."""
    generator = _generator(job.options.seed, "measure")

    def score(graphs: "GraphBatch") -> BatchScore | None:
        if not use_network:
            return job.pretext_task.score_baseline(graphs, generator)
        found: BatchScore | None = job.pretext_task(job.network, graphs, generator)
        return found

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
    """The graphs to learn from, and those to measure by."""
    order = torch.randperm(len(graphs), generator=_generator(seed, "held out")).tolist()
    count = max(1, round(HELD_OUT_FRACTION * len(graphs)))
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
        "epoch    %d: loss %.4f, %s %.4f on graphs held out",
        epoch,
        found.loss,
        job.pretext_task.metric_name,
        found.score,
    )


def _check_folder(options: PretrainOptions) -> Path:
    """Where the files go.

    Raises:
        UserError: if they may not.
    """
    if options.out is None:
        return free_folder(f"pretrain-{data_name(options.data)}-{time_stamp()}")
    folder = Path(options.out).expanduser()
    check_output_location(folder, data=options.data)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strange = min(there - {WEIGHTS, CONFIG, METRICS, LOG}, default=None)
    if strange is not None:
        raise UserError(
            f"--out {folder} holds something that is of no pretraining ({strange}): give another "
            "folder"
        )
    if there and not options.overwrite:
        raise UserError(
            f"--out {folder} is not empty: give another folder, or --overwrite to replace the "
            "pretraining in it"
        )
    return folder


def _write(found: PretrainResult, job: _PretrainJob, rows: Sequence[tuple[object, ...]]) -> None:
    """The weights last: who finds them finds the rest."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("epoch", "loss", "held_out_loss", "held_out_score"), *rows])
    write_atomically(found.folder / METRICS, text.getvalue())
    options = dataclasses.asdict(job.options)
    figures = {name: value for name, value in dataclasses.asdict(found).items() if name != "folder"}
    config = {name: options[name] for name in options if name not in ("out", "overwrite")}
    graphs = {"graphs": len(job.graphs), "held_out": len(job.held_out)}
    write_atomically(found.folder / CONFIG, json.dumps(config | graphs | figures, indent=2) + "\n")
    state = {
        name: tensor.cpu().contiguous().clone()
        for name, tensor in state_tensors(job.network).items()
        if not name.startswith("head.")
    }
    write_atomically(found.folder / WEIGHTS, save(state, metadata={"format": "pt"}))
