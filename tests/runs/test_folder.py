import logging
from pathlib import Path

import pytest

from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import ConfigError, EnvironmentError
from delta_transfer.runs import folder as module
from delta_transfer.runs.folder import (
    COMPARISON_FILE,
    begin_several,
    check_folder,
    default_folder,
    find_foreign_file,
    find_temporary_files,
    make_folder,
    remove_run,
)
from delta_transfer.utils.environment import describe
from delta_transfer.utils.logging import log_to

DATA = "some-images"
OPTIONS = "data: images\nmethods: l2\n"  # the start of those of a comparison


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("skimage/patches", "skimage-patches-l2"),
        ("nowhere/photos", "nowhere-photos-l2"),
        ("photos", "photos-l2"),
        ("photos/", "photos-l2"),
        ("photos/../photos/.", "photos-l2"),
    ],
)
def test_by_default_it_is_named_after_data_method_and_time(tmp_path, monkeypatch, data, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(module.time, "strftime", lambda form: "20300102-030405")
    found = default_folder(TrainOptions(data=data, method="l2").resolve())
    assert found == Path("runs") / f"{name}-20300102-030405"


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.time, "strftime", lambda form: "now")
    config = TrainOptions(data="photos", method="l2").resolve()
    found = []
    for _ in range(3):
        found.append(default_folder(config).name)
        default_folder(config).mkdir(parents=True)
    assert found == ["photos-l2-now", "photos-l2-now-2", "photos-l2-now-3"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_or_empty_folder_is_free(tmp_path, overwrite):
    check_folder(tmp_path / "new" / "run", TrainOptions(data=DATA, overwrite=overwrite).resolve())
    check_folder(tmp_path, TrainOptions(data=DATA, overwrite=overwrite).resolve())


@pytest.mark.parametrize(
    "content",
    [
        {"config.yaml": "data: images\n", "train.log": ""},  # cut off
        {"config.yaml": "data: images\n", "train.log": "", "result.json": "{}"},
        {"compare.yaml": OPTIONS},
        {".compare.yaml.a1b2c3d4": "data: "},  # cut off
        {
            "compare.yaml": OPTIONS,
            "results.csv": "",
            "report.html": "",
            ".report.html.a1b2c3d_": "",
        },
    ],
)
def test_a_run_or_comparison_is_replaced_only_if_asked(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"is not empty.*`overwrite` to replace"):
        check_folder(tmp_path, TrainOptions(data=DATA, overwrite=False).resolve())
    check_folder(tmp_path, TrainOptions(data=DATA, overwrite=True).resolve())


@pytest.mark.parametrize(
    "content",
    [
        {"thesis.txt": ""},
        {"config.yaml": "data: x\nmodules: [a]\n"},  # another program's
        {"config.yaml": "\tno: yaml: ["},
        {"compare.yaml": "name: score\n"},
        {"compare.yaml": OPTIONS, "thesis.txt": ""},
        {"run/config.yaml": "data: images\n"},  # a folder of runs is no run
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_replaced(tmp_path, content, overwrite):
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(
        ConfigError, match="do not belong to a run" if overwrite else "is not empty"
    ):
        check_folder(tmp_path, TrainOptions(data=DATA, overwrite=overwrite).resolve())


def test_making_it_leaves_it_empty_and_follows_no_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    out = tmp_path / "a" / "b"
    make_folder(out, overwrite=False)
    (out / "checkpoints" / "deep").mkdir(parents=True)
    (out / "checkpoints" / "last.ckpt").touch()
    (out / "config.yaml").touch()
    (out / "link").symlink_to(precious)
    make_folder(out, overwrite=True)
    assert names(out) == set()
    assert names(precious) == {"file"}


def test_what_another_run_has_written_meanwhile_is_not_emptied(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="another run has written"):
        make_folder(tmp_path, overwrite=False)
    assert names(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize("log", ["\n".join([*describe(), "why it failed"]), ""])
@pytest.mark.parametrize("resume", [False, True])
def test_the_log_of_a_failed_run_is_not_in_the_way(tmp_path, log, resume):
    (tmp_path / "train.log").write_text(log)
    check_folder(tmp_path, TrainOptions(data=DATA, out="run", resume=resume).resolve())
    make_folder(tmp_path, overwrite=False, resume=resume)
    assert (tmp_path / "train.log").read_text() == log


@pytest.mark.parametrize("option", ["", "overwrite", "resume"])
@pytest.mark.parametrize("partial", [[], [".config.yaml.a1b2c3d4"]])
def test_the_log_of_another_program_is_left_alone(tmp_path, option, partial):
    (tmp_path / "train.log").write_text("epoch 1: loss 0.5\n")
    for name in partial:
        (tmp_path / name).touch()
    options = {option: True} if option else {}
    with pytest.raises(ConfigError, match=r"do not belong.*train\.log" if option else "not empty"):
        check_folder(tmp_path, TrainOptions(data=DATA, out="run", **options).resolve())
    with pytest.raises(ConfigError, match="another run has written"):
        make_folder(tmp_path, overwrite=False)
    assert (tmp_path / "train.log").read_text() == "epoch 1: loss 0.5\n"


def test_a_comparison_in_the_folder_of_a_failed_run_can_be_replaced(tmp_path):
    (tmp_path / "train.log").write_text("\n".join(describe()))
    options = {"data": DATA, "batch_size": 8, "methods": "l2"}
    assert begin_several(tmp_path, COMPARISON_FILE, options, overwrite=False)
    assert names(tmp_path) == {COMPARISON_FILE}
    (tmp_path / COMPARISON_FILE).write_text(OPTIONS)
    check_folder(tmp_path, TrainOptions(data=DATA, overwrite=True).resolve())


def test_files_of_a_failed_run_that_cannot_be_deleted_do_not_hide_why(tmp_path, monkeypatch):
    for name in ("train.log", "config.yaml"):
        (tmp_path / name).touch()

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        remove_run(tmp_path, keep_log=True)
    assert names(tmp_path) == {"train.log", "config.yaml"}
    remove_run(tmp_path, keep_log=True)
    assert names(tmp_path) == {"train.log"}


@pytest.mark.parametrize("place", [".", "run", "train/run"])
def test_a_place_among_the_images_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is in the data folder"):
        check_folder(
            Path("photos") / place,
            TrainOptions(data=str(tmp_path / "photos"), overwrite=True).resolve(),
        )
    check_folder(tmp_path / "photos-run", TrainOptions(data="photos", overwrite=False).resolve())


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "config.yaml").touch()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    make_folder(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").is_symlink()
    assert names(tmp_path / "disk") == set()


def test_a_file_or_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file: use a folder"):
        check_folder(tmp_path / "file", TrainOptions(data=DATA, overwrite=True).resolve())
    with pytest.raises(EnvironmentError, match=r"cannot be written \(.*: use another `out`"):
        make_folder(tmp_path / "file" / "run", overwrite=True)


@pytest.mark.parametrize("fails", [False, True])
def test_the_log_is_the_lines_from_before_and_what_the_package_says(tmp_path, caplog, fails):
    caplog.set_level(logging.INFO, "delta_transfer")
    log = logging.getLogger("delta_transfer.somewhere")
    handlers = list(logging.getLogger("delta_transfer").handlers)
    path = tmp_path / "train.log"
    log.info("before")
    try:
        with log_to(path, ["data     Grüße", "model    m"]):
            log.warning("inside")
            logging.getLogger("another").warning("not ours")
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    log.info("after")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["data     Grüße", "model    m"]
    assert lines[2].endswith("WARNING inside")
    assert [line.split(maxsplit=2)[2] for line in lines[3:]] == (
        ["ERROR RuntimeError"] if fails else []
    )
    assert logging.getLogger("delta_transfer").handlers == handlers


def test_the_log_has_all_and_the_program_hears_no_more_than_it_asked_for(tmp_path, caplog):
    log = logging.getLogger("delta_transfer.somewhere")
    package = logging.getLogger("delta_transfer")
    caplog.set_level(logging.WARNING, "delta_transfer")
    with log_to(tmp_path / "train.log", []):
        log.info("as it goes")
        log.warning("look out")
    assert [record.message for record in caplog.records] == ["look out"]
    assert "INFO as it goes" in (tmp_path / "train.log").read_text()
    assert (package.level, package.propagate) == (logging.WARNING, True)


class TestWhatOverwriteDeletes:
    """Only what runs and comparisons write, and nothing that the new run reads."""

    def run_in(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(TrainOptions(data=DATA).resolve().to_yaml())
        (folder / "train.log").write_text("")
        (folder / "model").mkdir()
        return folder

    def comparison_in(self, folder: Path) -> Path:
        for run in ("l2-seed0", "5-per-class/l2-seed0"):
            self.run_in(folder / run)
        (folder / "probe-seed1").mkdir()  # just begun
        (folder / "probe-seed1" / "train.log").touch()
        (folder / "compare.yaml").write_text(OPTIONS)
        return folder

    def test_runs_and_comparisons_may_be_replaced(self, tmp_path):
        for folder in (self.run_in(tmp_path / "a"), self.comparison_in(tmp_path / "b")):
            check_folder(folder, TrainOptions(data=DATA, overwrite=True).resolve())

    @pytest.mark.parametrize(
        "place",
        ["thesis.tex", "l2-seed0/thesis.tex", "5-per-class/l2-seed0/thesis.tex", "5-per-class/a"],
    )
    def test_what_belongs_to_neither_is_not_deleted(self, tmp_path, place):
        folder = self.comparison_in(tmp_path / "b")
        (folder / place).write_text("years of work")
        with pytest.raises(ConfigError, match=rf"belong to a run \({place}\), which `overwrite`"):
            check_folder(folder, TrainOptions(data=DATA, overwrite=True).resolve())

    def test_what_is_broken_off_can_be_done_again(self, tmp_path, monkeypatch):
        folder = self.comparison_in(tmp_path / "b")
        remove, left = module.shutil.rmtree, iter([False, True])

        def break_off(path: Path) -> None:
            if next(left):
                raise KeyboardInterrupt
            remove(path)

        monkeypatch.setattr(module.shutil, "rmtree", break_off)
        with pytest.raises(KeyboardInterrupt):
            make_folder(folder, overwrite=True)
        check_folder(folder, TrainOptions(data=DATA, overwrite=True).resolve())

    def test_what_is_in_the_folder_of_a_run_is_told_apart(self, tmp_path):
        run = self.run_in(tmp_path / "run")
        (run / ".result.json.a_1b2c3d").touch()
        assert find_foreign_file(run) is None
        (run / ".result.json").touch()
        assert find_foreign_file(run) == ".result.json"

    def test_leftovers_are_those_of_a_comparisons_own_files(self, tmp_path):
        folder = self.comparison_in(tmp_path / "b")
        for name in (".compare.yaml.a1b2c3d4", ".gitignore", ".thesis.tex.a1b2c3d4"):
            (folder / name).touch()
        assert find_temporary_files(folder) == [folder / ".compare.yaml.a1b2c3d4"]

    @pytest.mark.parametrize(
        ("option", "form"),
        [
            ("data", "{}/examples"),
            ("weights", "{}/model/model.safetensors"),
            ("attention", "{}/attention.safetensors"),
            ("model", "local-dir:{}/model"),
            ("data_root", "{}/examples"),
            ("shifted", "{}/examples"),
        ],
    )
    def test_what_the_run_reads_is_not_deleted(self, tmp_path, option, form):
        folder = self.run_in(tmp_path / "run")
        (folder / "examples").mkdir()
        for name in ("model/model.safetensors", "attention.safetensors"):
            (folder / name).write_text("")
        options = {"data": DATA, "overwrite": True, option: form.format(folder)}
        with pytest.raises(ConfigError, match="which the run reads and `overwrite` would delete"):
            check_folder(folder, TrainOptions(**options).resolve())
