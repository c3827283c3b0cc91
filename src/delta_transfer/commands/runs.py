"""The commands that make, ask or hand on one run."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from delta_transfer import launching
from delta_transfer.commands.parsing import parse
from delta_transfer.config.commands import (
    AppOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    PushOptions,
)
from delta_transfer.utils.progress import progress_bar

_log = logging.getLogger("delta_transfer")


def train(args: Sequence[str]) -> None:
    """Fine-tune a pretrained network on a folder of pictures."""
    from delta_transfer.config.train import TrainConfig

    exclusive = ["epochs", "steps"]
    config = parse(TrainConfig, args, train, ["data"], config_file=True, exclusive=exclusive)
    from delta_transfer.runs import run, validation
    from delta_transfer.runs.folder import default_folder

    count = 1 if launching.is_started_by_other() else validation.count_processes(config)
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
    options = parse(EvaluateOptions, args, evaluate, ["run", "data"])
    from delta_transfer import evaluation_text
    from delta_transfer.inference import evaluation_folder
    from delta_transfer.inference.predictor import Predictor

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
    options = parse(PredictOptions, args, predict, ["run", "paths"])
    from delta_transfer.inference import prediction_files
    from delta_transfer.inference.predictor import Predictor
    from delta_transfer.metrics.objectives import Classes

    table = None if options.csv is None else Path(options.csv)
    if table is not None:
        prediction_files.check_table(table, overwrite=options.overwrite)
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
            line = prediction_files.to_line(
                prediction, top=options.top or 1, objective=predictor.objective
            )
            print(line)
        return
    predictions = predictor.predict(options.paths)
    if table is not None:
        prediction_files.write_table(table, predictions, predictor.classes, predictor.objective)
    if not options.json:
        print(f"csv      {table}")
        return
    print(prediction_files.to_json(predictions, top=options.top, objective=predictor.objective))


def export(args: Sequence[str]) -> None:
    """Write the network of a run as ONNX, a torch.export program or a folder for timm, checked."""
    options = parse(ExportOptions, args, export, ["run"])
    from delta_transfer.export.export import export_run, find_run
    from delta_transfer.inference.predictor import Predictor

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
    options = parse(PushOptions, args, push, ["run", "repo"])
    if not options.dry_run and (options.out is not None or options.overwrite):
        name = "--overwrite" if options.out is None else "--out"
        _log.warning("%s is ignored: no folder is left behind without --dry-run", name)
    from delta_transfer.export.hub import push as pushing

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
    options = parse(AppOptions, args, app, ["run"])
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
