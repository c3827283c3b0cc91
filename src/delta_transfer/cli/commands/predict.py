"""The command predict."""

import logging
from collections.abc import Sequence
from pathlib import Path

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    PredictOptions,
)

_log = logging.getLogger("delta_transfer")


def predict(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("predict", PredictOptions, args, positional=["run", "paths"])
    from delta_transfer.inference import prediction_files
    from delta_transfer.inference.predictor import Predictor
    from delta_transfer.metrics.task_types import Multiclass

    table = None if options.csv is None else Path(options.csv)
    if table is not None:
        prediction_files.check_csv_path(table, overwrite=options.overwrite)
    elif options.overwrite:
        _log.warning("--overwrite is ignored: no file is written without --csv")
    if options.top is not None and table is not None and not options.json:
        _log.warning("--top is ignored: with --csv all classes are written and nothing is printed")
    predictor = Predictor(
        options.run,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )
    if options.top is not None and not isinstance(predictor.task_type, Multiclass):
        _log.warning("--top is ignored: all %s are predicted", predictor.task_type.target_kind)
    if table is None and not options.json:
        for prediction in predictor.stream(options.paths):
            line = prediction_files.to_line(
                prediction, top=options.top or 1, task_type=predictor.task_type
            )
            print(line)
        return
    predictions = predictor.predict(options.paths)
    if table is not None:
        prediction_files.write_csv(table, predictions, predictor.classes, predictor.task_type)
    if not options.json:
        print(f"csv      {table}")
        return
    print(prediction_files.to_json(predictions, top=options.top, task_type=predictor.task_type))
