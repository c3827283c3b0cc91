import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import yaml

from delta_transfer.cli import main
from delta_transfer.cli.commands.bench import format_results
from delta_transfer.config.commands import BenchOptions
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.data.splits import hold_out
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError
from delta_transfer.experiments.benchmark.benchmark import make_plan, run_benchmark
from delta_transfer.experiments.benchmark.definition import (
    definitions_folder,
    find_benchmark,
    list_benchmarks,
    read_benchmark,
)
from delta_transfer.experiments.benchmark.plan import estimate_hours, list_downloads
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.metrics import ACCURACY, ROC_AUC, Metric
from delta_transfer.report.comparison.runs import Comparison, Entry

ROWS = {  # of published tables: DELTA's figure, and whether it is recalled
    "cifar10": (94.76, True),
    "cifar100": (80.39, False),
    "dtd": (72.23, False),
    "fgvc_aircraft": (87.05, False),
    "oxford_iiit_pet": (89.54, False),
    "caltech101": (92.19, False),
    "stanford_cars": (88.73, True),
    "flowers102": (98.65, True),
    "proteins": (63.96, False),
    "bbbp": (68.4, False),
    "sider": (62.9, False),
    "cub200": (82.3, False),
    "stanford_cars_tllib": (88.4, False),
}
OF_THE_PAPER = {"stanford_dogs", "mit67", "caltech256_30", "caltech256_60", "food101"}

RECIPES = {benchmark.name: benchmark for benchmark in list_benchmarks()}


def test_there_is_one_for_every_row():
    assert set(RECIPES) == set(ROWS) | OF_THE_PAPER
    assert {file.stem for file in definitions_folder().iterdir()} == set(RECIPES)
    for name, (figure, recalled) in ROWS.items():
        delta = RECIPES[name].published["delta_attention"]
        assert (delta.value, delta.unverified) == (figure, recalled)
    assert not any(RECIPES[name].published for name in OF_THE_PAPER)


@pytest.mark.parametrize("name", RECIPES)
def test_it_names_data_methods_and_sources_that_there_are(name):
    benchmark = RECIPES[name]
    assert is_dataset_name(benchmark.options["data"])
    assert set(benchmark.methods) <= set(METHODS)
    assert "https://" in benchmark.reference
    assert benchmark.differences
    assert re.match("https?://", benchmark.downloads[0].url)
    assert benchmark.downloads[0].file is None  # the data set comes first
    assert len(set(benchmark.seeds)) == len(benchmark.seeds)


@pytest.fixture
def made(tmp_path):
    """Writes a benchmark in which something is changed or left out."""

    def make(without: str | None = None, **changes: object) -> Path:
        values = yaml.safe_load((definitions_folder() / "dtd.yaml").read_text()) | changes
        values.pop(without, None)
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": 3}, r"own\.yaml: unknown key 'epoch'"),
        ({"without": "reference"}, r"own\.yaml: reference is missing; required are name, "),
        ({"num_train_samples": "many"}, "num_train_samples must be a whole number, got 'many'"),
        ({"num_train_samples": True}, "num_train_samples must be a whole number, got True"),
        ({"methods": "l2"}, "methods must be a list, got 'l2'"),
        ({"seeds": [0, "a"]}, "seeds must be a whole number, got 'a'"),
        ({"published": {"l2": 3}}, "published: l2 must have the keys value"),
        ({"published": {"l2": {"value": 1, "unverifid": True}}}, "l2: unknown key 'unverifid'"),
        ({"published": {"l2": {"value": "1"}}}, "l2: value must be a number, got '1'"),
        ({"downloads": [{"name": "a"}]}, "downloads: url is missing"),
        ({"metric": "top1"}, "metric: unknown metric 'top1'"),
        ({"options": {"data": "a", "rotate": 15}}, "options: unknown option 'rotate'"),
        ({"options": {"data": "a", "seed": 1}}, "options: unknown option 'seed'"),
        ({"options": {"data": "a", "device": "cpu"}}, "options: unknown option 'device'"),
        ({"options": {"data": "a", "devices": 2}}, "options: unknown option 'devices'"),
        ({"options": {"epochs": 1}}, "options: data is missing"),
        ({"options": {"data": "a", "epochs": 0}}, r"options: .*epochs.* got 0"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(made, changes, says):
    with pytest.raises(UserError, match=says):
        read_benchmark(made(**changes))


@pytest.mark.parametrize("content", ["[", "- a", ""])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(UserError, match=r"own\.yaml "):
        read_benchmark(tmp_path / "own.yaml")


def test_a_users_file_is_a_benchmark(made):
    file = made(summary="mine", published={"delta": {"value": 72}})
    benchmark = find_benchmark(str(file))
    assert benchmark.summary == "mine"
    assert benchmark.published["delta"].value == 72.0


def test_what_may_be_missing_may_be_null(made):
    download = {"name": "a", "url": "https://a.b", "size_mb": None, "note": None}
    benchmark = read_benchmark(made(weights=None, downloads=[download]))
    assert (benchmark.weights, benchmark.downloads[0].size_mb) == (None, None)


def test_the_number_of_training_samples_excludes_the_validation_split():
    """A fraction of each class is held out; the published splits have the sizes."""
    sizes = {
        "cub200": [30] * 194 + [29] * 6,
        "oxford_iiit_pet": [100] * 32 + [99, 96, 96, 96, 93],
        "food101": [750] * 101,
        "stanford_dogs": [100] * 120,
        "mit67": [80] * 67,
        "caltech101": [30] * 101,
        "caltech256_30": [30] * 256,
        "caltech256_60": [60] * 256,
        "cifar10": [5000] * 10,
        "cifar100": [500] * 100,
    }
    for name, counts in sizes.items():
        share = RECIPES[name].options["val_fraction"]
        labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
        everything = Split(paths=("",) * len(labels), labels=labels, read=Path)
        assert RECIPES[name].num_train_samples == len(hold_out(everything, share, seed=0)[0]), name


def test_the_options_of_the_command_override_the_benchmark(tmp_path):
    options = BenchOptions(
        name="dtd",
        methods="l2, delta",
        seeds="4",
        samples_per_class=5,
        data_root=str(tmp_path),
        device="cpu",
        num_workers=0,
    )
    asked = make_plan(RECIPES["dtd"], options)
    assert (asked.methods, asked.seeds, asked.samples_per_class) == (("l2", "delta"), (4,), 5)
    assert asked.folder == Path("runs/bench-dtd")
    assert asked.config.lr == 0.01
    assert (asked.config.device, asked.config.num_workers) == ("cpu", 0)
    own = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    assert asked.config.weights == str(own)
    with pytest.raises(UserError, match=r"moco_v2.*': download it from http"):
        run_benchmark(asked, n_jobs=1)
    other = make_plan(RECIPES["dtd"], BenchOptions(name="dtd", weights="mine.pth"))
    assert (other.config.weights, other.weights) == ("mine.pth", None)


def test_molecules_have_no_classes_to_limit():
    with pytest.raises(UserError, match="`samples_per_class=5`: bbbp has no classes"):
        make_plan(RECIPES["bbbp"], BenchOptions(name="bbbp", samples_per_class=5))


def test_the_list_has_a_line_for_each(capsys, tmp_path):
    assert main.main(["bench", "--list", f"--data-root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line.split() for line in lines[1:-1]}
    assert set(found) == set(RECIPES)
    assert found["cifar10"][1:] == ["torchvision/cifar10", "accuracy", "94.76", "(u)", "no"]
    assert found["proteins"][3:6] == ["63.96", "+-", "5.35"]
    assert found["mit67"][3] == "-"


def test_a_dry_run_shows_downloads_and_time_and_does_nothing(capsys, tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    options = {"data": "mit67", "model": "torchvision/resnet18", "image_size": 32, "epochs": 2}
    file = made(
        options=options,
        downloads=[
            {"name": "images", "url": "https://a.b", "size_mb": 2400, "manual": True},
            {"name": "more", "url": "https://c.d", "size_mb": 5, "file": "not-there.pth"},
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    assert main.main(["bench", str(file), "--dry-run", "--data-root=here", "--device=cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "runs 9: l2, l2sp, delta_attention; seeds 0, 1, 2; runs/bench-dtd" in said
    assert "images not in here, download it manually, 2.4 GB: https://a.b" in said
    assert "'here/moco_v2_800ep_pretrain.pth.tar' is missing: download it from https://dl." in said
    assert re.search(r"time about [\d.]+ (minutes|hours|days) of training steps", said)
    assert "https://c.d" not in said  # the benchmark's weights take the place of the library's
    assert "differs Theirs: resize to 272" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_of_a_library_are_searched_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    asked = make_plan(RECIPES["cub200"], BenchOptions(name="cub200", data_root=str(tmp_path)))
    assert [need.is_available for need in list_downloads(asked)] == [False, False]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-0676ba61.pth").touch()
    assert [need.is_available for need in list_downloads(asked)] == [False, True]
    other = make_plan(RECIPES["cub200"], BenchOptions(name="cub200", weights="mine.pth"))
    assert [need.download.name for need in list_downloads(other)] == ["images"]


def test_hours_grow_with_seeds_and_epochs(monkeypatch, made):
    monkeypatch.setattr(
        "delta_transfer.experiments.benchmark.plan._measure", lambda config: (0.25, 1.0)
    )
    options = {"data": "mit67", "epochs": 2}

    def hours(method: str, **more: object) -> float | None:
        benchmark = read_benchmark(made(options=options | more, num_train_samples=1800))
        return estimate_hours(make_plan(benchmark, BenchOptions(name="own", methods=method)))

    assert hours("l2") == 3 * 2 * 1800 / 3600
    assert hours("probe") == 0
    assert hours("delta") == 1.25 * 3.0  # and the source's forward pass
    assert hours("delta", strength="auto") == 2 * 1.25 * 3.0  # two trainings
    assert hours("l2,l2sp", epochs=4, strength="auto") == 3 * 6.0  # two trainings of l2sp
    assert hours("probe", preset="paper", epochs=None) == 0  # which has no official form


@pytest.fixture
def runs(monkeypatch):
    """Runs of a folder, method, seed, size and accuracy each."""

    def put(*found: tuple[str, int, int | None, float], measure: Metric = ACCURACY) -> None:
        entries = tuple(
            Entry(
                method=method,
                seed=seed,
                samples_per_class=size,
                score=score,
                probe=0.5,
                trained_share=1.0,
                strength=None,
                wall_time_s=1.0,
                peak_memory_mib=1.0,
                retention={},
                folder=PurePosixPath("run"),
            )
            for method, seed, size, score in found
        )
        there = Comparison(Path("runs"), "test", measure, entries)
        monkeypatch.setattr(
            "delta_transfer.experiments.benchmark.benchmark.read_comparison", lambda folder: there
        )

    return put


def test_fewer_seeds_of_a_method_are_shown(runs):
    runs(("l2", 0, None, 0.5), ("l2", 1, None, 0.6), ("delta_attention", 0, None, 0.7))
    title, _, *lines = format_results(make_plan(RECIPES["cub200"], BenchOptions(name="cub200")))
    assert title == "cub200: test accuracy in percent, 2 seeds"
    assert lines[0].split() == ["l2", "55.00", "+-", "7.07", "81.80"]
    assert lines[1].split() == ["delta_attention", "70.00", "(1", "seed)", "82.30"]
    assert lines[2].split() == ["co_tuning", "-", "82.50"]


def test_without_a_run_of_this_size_there_is_no_table(runs):
    runs(("l2", 0, None, 0.5))
    assert (
        list(
            format_results(
                make_plan(RECIPES["cub200"], BenchOptions(name="cub200", samples_per_class=5))
            )
        )
        == []
    )


def test_results_of_another_metric_are_refused(runs):
    runs(("l2", 0, None, 0.5), measure=ROC_AUC)
    with pytest.raises(UserError, match=r"cub200: .* ROC-AUC, .* metric: accuracy"):
        list(format_results(make_plan(RECIPES["cub200"], BenchOptions(name="cub200"))))


def test_a_wheel_brings_them(tmp_path):
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"delta_transfer/recipes/{name}.yaml" for name in RECIPES} <= names
