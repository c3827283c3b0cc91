"""The commands. Everything is imported inside the command that needs it, so that help is fast."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from delta_transfer import launching
from delta_transfer.app_options import AppOptions
from delta_transfer.attention_options import AttentionOptions
from delta_transfer.bench_options import BenchOptions
from delta_transfer.console import print_attention, print_table, print_trials, progress_bar
from delta_transfer.options import (
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    LayersOptions,
    NoOptions,
    PredictOptions,
    with_train,
)
from delta_transfer.pretrain_options import PretrainOptions
from delta_transfer.push_options import PushOptions
from delta_transfer.search_options import SearchOptions

if TYPE_CHECKING:  # which loads torch
    from delta_transfer.compare import Compared

Options = TypeVar("Options")

_log = logging.getLogger("delta_transfer")


def train(args: Sequence[str]) -> None:
    """Fine-tune a pretrained network on a folder of pictures."""
    from delta_transfer.config import TrainConfig

    exclusive = ["epochs", "steps"]
    config = _parse(TrainConfig, args, train, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer import run, run_checks
    from delta_transfer.run_folder import default_folder

    count = 1 if launching.is_started_by_other() else run_checks.count_processes(config)
    if count > 1:
        out = [] if config.out else [f"--out={default_folder(config)}"]
        code = launching.launch(["train", *args, *out], processes=count)
        if code:
            sys.exit(code)  # which of them has said why
        return
    result = run.train(config)
    if launching.is_heard():
        for what, name in (
            ("model", "model"),
            ("report", "report.html"),
            ("metrics", "metrics.csv"),
            ("states", "checkpoints"),
        ):
            if (
                result.folder / name
            ).exists():  # without training there are neither of the last two
                print(f"{what:<8} {result.folder / name}")


def evaluate(args: Sequence[str]) -> None:
    """Measure a run on labelled pictures, molecules or graphs, class by class."""
    options = _parse(EvaluateOptions, args, evaluate, ["run", "data"])
    from delta_transfer import evaluation_folder, evaluation_text
    from delta_transfer.predict import Predictor

    if options.out is not None:
        evaluation_folder.check_folder(Path(options.out), data=options.data)
    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    found = predictor.evaluate(options.data, data_root=options.data_root)
    if found.seen:
        _log.warning(
            "the run has learnt from %ss of %s: these figures flatter it",
            found.split.noun,
            options.data,
        )
    folder = evaluation_folder.save(found, run=Path(options.run), out=options.out)
    if options.json:
        print(found.to_json(), end="")
        return
    print("\n".join(evaluation_text.describe(found)))
    if folder is not None:
        print(f"\nfiles    {folder}")


def predict(args: Sequence[str]) -> None:
    """Say what a run makes of pictures or molecules: path, class and probability."""
    options = _parse(PredictOptions, args, predict, ["run", "paths"])
    from delta_transfer import answers
    from delta_transfer.objective import Classes
    from delta_transfer.predict import Predictor

    table = None if options.csv is None else Path(options.csv)
    if table is not None:
        answers.check_table(table, overwrite=options.overwrite)
    elif options.overwrite:
        _log.warning("--overwrite is ignored: no file is written without --csv")
    if options.top is not None and table is not None and not options.json:
        _log.warning("--top is ignored: the file of --csv has all classes, and nothing is printed")
    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    if options.top is not None and not isinstance(predictor.objective, Classes):
        _log.warning("--top is ignored: all %s are answered", predictor.objective.outputs)
    if table is None and not options.json:
        for prediction in predictor.stream(options.paths):
            line = answers.to_line(prediction, top=options.top or 1, objective=predictor.objective)
            print(line)
        return
    predictions = predictor.predict(options.paths)
    if table is not None:
        answers.write_table(table, predictions, predictor.classes, predictor.objective)
    if not options.json:
        print(f"csv      {table}")
        return
    print(answers.to_json(predictions, top=options.top, objective=predictor.objective))


def export(args: Sequence[str]) -> None:
    """Write the network of a run as ONNX, a torch.export program or a folder for timm, checked."""
    options = _parse(ExportOptions, args, export, ["run"])
    from delta_transfer.export import export_run, find_run
    from delta_transfer.predict import Predictor

    predictor = Predictor(find_run(options.run), device="cpu")
    found = export_run(
        predictor, format=options.format, out=options.out, overwrite=options.overwrite
    )
    if predictor.config.official:
        _log.info(
            "the test of this run averages ten crops; what is exported takes one picture each"
        )
    print(f"file        {found.file}")
    if found.opset is not None:
        print(f"opset       {found.opset}")
    print(f"size        {found.size / 2**20:.1f} MiB")
    print(f"difference  {found.difference:.1e} at most to PyTorch's logits, on {found.checked}")


def push(args: Sequence[str]) -> None:
    """Upload a run to the Hugging Face Hub with a model card, or write the folder for it."""
    options = _parse(PushOptions, args, push, ["run", "repo"])
    if not options.dry_run and (options.out is not None or options.overwrite):
        name = "--overwrite" if options.out is None else "--out"
        _log.warning("%s is ignored: no folder is left behind without --dry-run", name)
    from delta_transfer.push import pushing

    found = pushing.push(options)
    if found.uploaded is None:
        print(f"folder   {found.folder}")
        print(f"for      {found.address}: nothing is uploaded")
    else:
        print(f"address  {found.address}{' (private)' if found.uploaded.private else ''}")
        print(f"commit   {found.uploaded.commit}")
    for name, size in found.files.items():
        print(f"{size / 1024:9,.1f} KiB  {name}")
    if found.folder is not None:
        print(f"upload this folder, changed or not: hf upload {options.repo} {found.folder}")


def app(args: Sequence[str]) -> None:
    """Serve a page for pictures: what a run says of them, and why."""
    options = _parse(AppOptions, args, app, ["run"])
    from delta_transfer.app import serving

    serving.need_app_libraries()
    with serving.listening(options.host, options.port) as listener:
        from delta_transfer.app.opening import open_run
        from delta_transfer.app.site import make_site

        explainer = open_run(
            options.run,
            examples=options.examples,
            progress=progress_bar,
            data_root=options.data_root,
            device=options.device,
        )
        hosts = serving.hosts_of(listener, options.host)
        site = make_site(explainer, hosts=hosts, limit=options.max_mb * 2**20)
        print(f"page     {serving.address_of(listener, options.host)}", flush=True)
        print("         Ctrl-C ends it", flush=True)
        serving.serve(site, listener)


def attention(args: Sequence[str]) -> None:
    """Measure how much each channel of a pretrained network matters for a data set."""
    options = _parse(AttentionOptions, args, attention, ["data"])
    from delta_transfer.attention_command import measure

    measured = measure(options)
    if options.json:
        print(measured.to_json())
        return
    print_attention(measured.taps, title=measured.title)
    print(f"attention  {measured.file}")
    print(f"picture    {measured.picture}")


def layers(args: Sequence[str]) -> None:
    """List the modules of a network that can be tapped, and those that auto takes."""
    options = _parse(LayersOptions, args, layers, ["model"])
    from delta_transfer.backbones import InputSpec, load_blank
    from delta_transfer.stages import auto_taps, list_modules

    backbone = load_blank(options.model, image_size=options.image_size)
    example = backbone.input.example()
    rows = [row for row in list_modules(backbone.module, example) if row.name != backbone.head]
    chosen = auto_taps(backbone.module, example=example)
    if options.json:
        print(json.dumps([{**dataclasses.asdict(row), "auto": row.name in chosen} for row in rows]))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        mark = "*" if row.name in chosen else " "
        shape = "x".join(map(str, row.shape))
        print(f"{mark} {row.name:{width}}  {shape:>16}  channels in dim {row.channel_dim}")
    shown = backbone.input
    of = f"picture of {shown.size} pixels" if isinstance(shown, InputSpec) else "graph of 2 nodes"
    print(f"* taken by --taps auto; shapes are those of one {of}")


def pretrain(args: Sequence[str]) -> None:
    """Train a network on molecules or graphs without labels: weights for train to start from."""
    options = _parse(PretrainOptions, args, pretrain, ["data"])
    from delta_transfer import pretrain as pretraining

    found = pretraining.pretrain(options)
    print(f"{found.unit} on graphs held out:")
    for score, when in (
        (found.chance.score, "without a look at them"),
        (found.before.score, "at the start"),
        (found.after.score, "at the end"),
    ):
        print(f"{score:8.4f} {when}")
    print(f"weights  {found.folder / pretraining.WEIGHTS}")


def methods(args: Sequence[str]) -> None:
    """List the methods of fine-tuning, a line each."""
    _parse(NoOptions, args, methods, [])
    from delta_transfer.methods import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        own = [one.strength for one in method.branches or (method,) if one.strength is not None]
        strength = f" (strength {' and '.join(f'{one:g}' for one in own)})" if own else ""
        kinds = "" if len(method.kinds) > 1 else f"; for {method.kinds[0]}"
        print(f"{method.name:{width}}  {method.summary}{strength}{kinds}")
        print(f"{'':{width}}  {method.paper}")


def compare(args: Sequence[str]) -> None:
    """Compare methods on the same pictures, by several seeds; goes on where it was broken off."""
    alone = ["method", "seed", "resume", "devices", "num_nodes", "strategy"]
    kind = with_train(CompareOptions, without=alone)
    exclusive = ["epochs", "steps"]
    options = _parse(kind, args, compare, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer import compare_command

    _show(compare_command.run(options))


def search(args: Sequence[str]) -> None:
    """Look for a better strength, learning rate, number of epochs and taps by many trials."""
    kind = with_train(SearchOptions, without=["resume", "devices", "num_nodes", "strategy"])
    exclusive = ["epochs", "steps"]
    options = _parse(kind, args, search, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer import search_command

    found = search_command.run(options)
    print_trials(search_command.shown(found), names=found.names)
    print("\n".join(search_command.lines(found)))
    for what, name in (("options", "best.yaml"), ("run", "best"), ("trials", "trials.csv")):
        print(f"{what:<10} {found.folder / name}")


def bench(args: Sequence[str]) -> None:
    """Make a published row again, and print our figures beside the published ones."""
    options = _parse(BenchOptions, args, bench, ["name"])
    from delta_transfer import bench_text
    from delta_transfer.recipe import find_recipe, list_recipes

    if options.name is None:
        print("\n".join(bench_text.listing(list_recipes(), data_root=options.data_root)))
        return
    recipe = find_recipe(options.name)
    from delta_transfer import bench as benches

    asked = benches.ask(recipe, options)
    if options.dry_run:
        print("\n".join(bench_text.plan(asked)))
        return
    compared = benches.run(asked, jobs=options.jobs)
    if compared.results:
        for line in bench_text.table(asked):
            print(line)
    from delta_transfer.compare_command import check_failures

    check_failures(compared)


def demo(args: Sequence[str]) -> None:
    """Compare DELTA with its peers on photographs that come installed: a few minutes, offline."""
    options = _parse(DemoOptions, args, demo, [])
    from delta_transfer import compare_command

    _show(compare_command.demo(options))


def _show(compared: "Compared") -> None:
    """Prints the tables of a comparison and where its files are.

    Raises:
        UserError: if a run failed.
    """
    from delta_transfer.compare_command import check_failures, tables

    if compared.results:
        for table in tables(compared):
            print_table(table.methods, title=table.title, failed=table.failed)
        print(f"results  {compared.folder / 'results.csv'}")
        print(f"report   {compared.folder / 'report.html'}")
    check_failures(compared)


def _parse(
    options: type[Options],
    args: Sequence[str],
    command: Callable[[Sequence[str]], None],
    positional: Sequence[str],
    *,
    config_file: bool = False,
    exclusive: Sequence[str] = (),
) -> Options:
    """The options of a command."""
    from delta_transfer.arguments import parse

    return parse(
        options,
        args,
        prog=f"delta-transfer {command.__name__}",
        summary=summary(command),
        positional=positional,
        config_file=config_file,
        exclusive=exclusive,
    )


def summary(command: Callable[..., Any]) -> str:
    """What a command does, in a line."""
    return (command.__doc__ or "").splitlines()[0]


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "push": push,
    "app": app,
    "attention": attention,
    "compare": compare,
    "search": search,
    "bench": bench,
    "layers": layers,
    "pretrain": pretrain,
    "methods": methods,
    "demo": demo,
}
