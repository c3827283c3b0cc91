"""The command `attention`: from its options to a file, figures per tap and a picture."""

import dataclasses
import itertools
import json
import logging
import os
from pathlib import Path

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention_summary import TapSummary, figures, origin, summarize
from delta_transfer.config.commands import AttentionOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Noun
from delta_transfer.errors import UserError
from delta_transfer.prepare import prepare
from delta_transfer.report.attention_figure import attention_figure
from delta_transfer.run_attention import attention_order, estimate
from delta_transfer.run_folder import check_place, data_name, time_stamp
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What the command leaves behind.

    Args:
        attention: that was measured.
        file: that holds it.
        picture: beside the file.
        noun: what one of the samples is called that it was measured on.
    """

    attention: ChannelAttention
    file: Path
    picture: Path
    noun: Noun

    @property
    def taps(self) -> list[TapSummary]:
        """A summary of each tap."""
        return summarize(self.attention)

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"Channel attention: {origin(self.attention, self.noun)}"

    def to_json(self) -> str:
        """All of it but the scores, which are in the file."""
        values = {
            "file": str(self.file),
            "picture": str(self.picture),
            "estimator": self.attention.method,
            "samples": self.attention.samples,
            "temperature": self.attention.temperature,
            "clip": self.attention.clip,
            "floor": self.attention.floor,
            "taps": [dataclasses.asdict(tap) for tap in self.taps],
        }
        return json.dumps(values, indent=2)


def measure(options: AttentionOptions) -> Measured:
    """Measures channel attention and writes it, with a picture beside it.

    Raises:
        UserError: if an option, the data or the network is not as it must be, or the file may not
            be written: nothing is written then.
    """
    config = _config(options)
    file = _default_file(options.data) if options.out is None else Path(options.out).expanduser()
    if options.out is None:
        check_place(file.parent, data=options.data)
    else:
        _check_file(file, options)
    prepared = prepare(config)
    noun = prepared.task.noun
    with progress_bar("channels", f"{noun}s x channels") as progress:
        attention = estimate(prepared, config, progress=progress)
    order = attention_order(config, len(prepared.task.train))
    figure = attention_figure(
        figures(attention, prepared.task, order),
        title=f"Channel attention of {options.model} on {prepared.task.name}",
        note=origin(attention, noun),
    )
    picture = file.with_suffix(".png")
    _write(file, attention, picture, figure)
    return Measured(attention=attention, file=file, picture=picture, noun=noun)


def _config(options: AttentionOptions) -> TrainConfig:
    """The options of a run that measures the same attention."""
    return TrainConfig(
        data=options.data,
        model=options.model,
        weights=options.weights,
        preset=options.preset,
        taps=options.taps,
        attention=options.estimator,  # type: ignore[arg-type]  # None: as the preset says
        attention_samples=options.samples,
        attention_tolerance=options.tolerance,
        attention_temperature=options.temperature,
        attention_clip=options.clip,
        attention_floor=options.floor,
        image_size=options.image_size,
        samples_per_class=options.samples_per_class,
        seed=options.seed,
        val_fraction=options.val_fraction,
        test_split=options.test_split,
        data_root=options.data_root,
        smiles_column=options.smiles_column,
        label_columns=options.label_columns,
        split=options.split,
        batch_size=options.batch_size,  # type: ignore[arg-type]
        device=options.device,
        workers=options.workers,
    )


def _default_file(data: str) -> Path:
    first = Path("runs") / f"attention-{data_name(data)}-{time_stamp()}"
    for number in itertools.count(1):
        file = Path(f"{first}{'' if number == 1 else f'-{number}'}.safetensors")
        if not file.exists() and not file.with_suffix(".png").exists():
            return file
    raise AssertionError


def _check_file(file: Path, options: AttentionOptions) -> None:
    """Checks that the file may be written, before anything slow begins.

    Raises:
        UserError: if it is there and may not be replaced, or its folder cannot be written.
    """
    if file.suffix != ".safetensors":
        raise UserError(
            f"--out {file} must end in .safetensors: give a name such as attention.safetensors"
        )
    for path in (file, file.with_suffix(".png")):
        if path.exists() and not path.is_file():
            raise UserError(f"--out {file}: {path} is no file: give another name")
        if path.exists() and not options.overwrite:
            raise UserError(
                f"--out {file}: {path} is there already: give another name, or --overwrite"
            )
    if file.exists():
        try:
            ChannelAttention.load(file)
        except UserError as error:
            raise UserError(
                f"--out {file}: --overwrite replaces channel attention alone, and {error}"
            ) from error
    folder = file.parent
    if not folder.is_dir():
        raise UserError(f"--out {file}: there is no folder {folder}: make it, or give another")
    data = Path(options.data)
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise UserError(
            f"--out {file} lies in the data folder {data}, where the picture beside it would count "
            "as one of the data: give a file outside of it"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {file}: the folder {folder} cannot be written: give another")


def _write(file: Path, attention: ChannelAttention, picture: Path, figure: bytes) -> None:
    """Writes both files; a picture that lies beside a file is always of that file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    attention.save(file)
    write_atomically(picture, figure)
