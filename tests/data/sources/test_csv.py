import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from delta_transfer.data.registry import load_data, load_labelled_data
from delta_transfer.data.sources.csv import list_csv, load_labelled_csv
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(make_images, tmp_path: Path) -> Write:
    """Makes the images and writes lines into a CSV file beside them."""

    def make(*lines: str, images: Sequence[str] = (), encoding: str = "utf-8") -> Path:
        root = make_images(images) if images else tmp_path / "pets"
        root.mkdir(exist_ok=True)
        file = root / "pets.csv"
        file.write_bytes("\n".join([*lines, ""]).encode(encoding))
        return file

    return make


NAMES = {split: [f"{split}{i}.png" for i in range(8)] for split in ("train", "val", "test")}


def rows(*splits: str, column: bool = True) -> list[str]:
    """A row for each of eight images of every split, cats and dogs in turn."""
    return [
        f"{name},{('cat', 'dog')[i % 2]}" + (f",{split}" if column else "")
        for split in splits
        for i, name in enumerate(NAMES[split])
    ]


def everything(*splits: str) -> list[str]:
    return [name for split in splits for name in NAMES[split]]


def load(file: Path, *, seed: int = 0, **options: object) -> TaskData:
    return load_data(str(file), seed=seed, **options)


def sizes(task: TaskData) -> tuple[int, int, int | None]:
    return len(task.train), len(task.val), None if task.test is None else len(task.test)


class TestSplits:
    @pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION"])
    def test_they_are_taken_as_they_are(self, write: Write, name: str) -> None:
        lines = [row.replace(",val", f",{name}") for row in rows("train", "val", "test")]
        lines = ["path,label,split", *lines]
        task = load(write(*lines, images=everything("train", "val", "test")))
        assert (task.name, task.classes, task.notes) == ("pets", ("cat", "dog"), ())
        assert sizes(task) == (8, 8, 8)
        assert not task.val_drawn
        assert task.test is not None
        assert (task.val.paths, task.test.paths) == (tuple(NAMES["val"]), tuple(NAMES["test"]))
        assert task.train.labels == (0, 1) * 4

    def test_missing_ones_are_drawn_from_train(self, write: Write) -> None:
        file = write("path,label", *rows("train", column=False), images=everything("train"))
        task = load(file, test_split="0.25", val_fraction=0.25)
        assert (sizes(task), task.val_drawn) == ((4, 2, 2), True)
        assert task.test is not None
        for split in (task.train, task.val, task.test):
            assert len(set(Counter(split.labels).values())) == 1
        drawn = task.train.paths + task.val.paths + task.test.paths
        assert sorted(drawn) == NAMES["train"]
        assert [note.split(":")[0] for note in task.notes] == [
            "no test split",
            "no validation split",
        ]

    def test_a_test_split_is_not_drawn_by_default(self, write: Write) -> None:
        file = write("path,label,split", *rows("train"), images=everything("train"))
        assert sizes(load(file)) == (6, 2, None)

    def test_the_same_rows_as_a_folder_give_the_same_draw(self, make_images) -> None:
        names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(9)]
        root = make_images(names)
        file = root / "pets.csv"
        file.write_text("path,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
        for split in ("test", "0.3"):
            listed, found = (load(path, seed=3, test_split=split) for path in (file, root))
            assert (listed.train, listed.val, listed.test) == (found.train, found.val, found.test)

    def test_a_fraction_beside_a_test_split(self, write: Write) -> None:
        lines = ["path,label,split", *rows("train", "test")]
        file = write(*lines, images=everything("train", "test"))
        with pytest.raises(UserError, match=r"`test_split=0.2`: .*pets.csv' has its own test spl"):
            load(file, test_split="0.2")

    def test_a_name_for_the_test_split(self, write: Write) -> None:
        file = write("path,label", *rows("train", column=False), images=everything("train"))
        with pytest.raises(UserError, match=r"`test_split=holdout`: .*a fraction such as 0.2"):
            load(file, test_split="holdout")

    def test_an_unused_fraction_is_mentioned(self, write: Write) -> None:
        lines = ["path,label,split", *rows("train", "val", "test")]
        file = write(*lines, images=everything("train", "val", "test"))
        (note,) = load(file, val_fraction=0.3).notes
        assert note.startswith("`val_fraction=0.3` is ignored")

    def test_val_and_test_may_lack_a_class(self, write: Write) -> None:
        lines = [*rows("train", "val"), "test0.png,cat,test"]
        task = load(write("path,label,split", *lines, images=everything("train", "val", "test")))
        assert (task.classes, sizes(task)) == (("cat", "dog"), (8, 8, 1))
        assert task.notes == (
            "no image of class 'dog' (line 3) in test: its accuracy there is unknown",
        )

    def test_nothing_to_learn_from(self, write: Write) -> None:
        file = write("path,label,split", *rows("val"), images=everything("val"))
        with pytest.raises(
            UserError, match="no row with the split 'train': write 'train' into the"
        ):
            load(file)

    def test_too_few_to_draw_from(self, write: Write) -> None:
        file = write("path,label", "a.png,cat", "b.png,dog", images=["a.png", "b.png"])
        message = "drawing a validation split needs at least 2 .*'cat' has 1.*column split"
        with pytest.raises(UserError, match=message):
            load(file)


class TestRows:
    def test_images_are_read_by_their_path(self, write: Write) -> None:
        names = ["deep/er/a.png", "b.png", "c.png", "d.png"]
        file = write(
            "path,label", "./deep//er/a.png,x", "b.png,x", "c.png,y", "d.png,y", images=names
        )
        split = pickle.loads(pickle.dumps(load_labelled_csv(file)[1]))
        assert split.paths == tuple(names)
        assert split.read("c.png").getpixel((0, 0)) == (14, 62, 0)

    def test_relative_to_the_file_and_not_to_the_current_folder(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write("path,label", *rows("train", column=False), images=everything("train"))
        monkeypatch.chdir(file.parent.parent)
        task = load(Path("pets/pets.csv"))
        assert task.train.read(task.train.paths[0]).size == (6, 5)
        monkeypatch.chdir(file.parent)
        assert load(Path("pets.csv")).train.paths == task.train.paths

    def test_odd_names_and_quotes(self, write: Write) -> None:
        names = ["1, two.png", 'the "third".png', "vier ü.png", "五.png"]
        file = write(
            "path,label",
            '"1, two.png","cat, or dog"',
            '"the ""third"".png",2 legs',
            "vier ü.png,Äffchen",
            "五.png, 猫 ",
            images=names,
        )
        classes, split, test = load_labelled_csv(file)
        assert (classes, split.paths, test) == (
            ("2 legs", "cat, or dog", "Äffchen", "猫"),
            tuple(names),
            False,
        )
        assert [classes[label] for label in split.labels] == [
            "cat, or dog",
            "2 legs",
            "Äffchen",
            "猫",
        ]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_line_ends_and_byte_order_marks(self, write: Write, end: str, mark: str) -> None:
        file = write(images=["a.png", "b.png"])
        lines = [f"{mark}Path , LABEL,note", "a.png, cat,x", "b.png,dog ,y", "", ",,", ""]
        file.write_bytes(end.join(lines).encode())
        classes, split, _ = load_labelled_csv(file)
        assert (classes, split.paths) == (("cat", "dog"), ("a.png", "b.png"))

    def test_unused_columns_are_mentioned(self, write: Write) -> None:
        lines = [f"{row},7,x" for row in rows("train", column=False)]
        file = write("path,label,age,Owner", *lines, images=everything("train"))
        assert load(file).notes[0] == "unused columns: age, Owner"

    def test_labels_are_text(self, write: Write) -> None:
        file = write("label,path", "10,a.png", "9,b.png", "010,c.png", images=["a.png", "b.png"])
        (file.parent / "c.png").write_bytes((file.parent / "a.png").read_bytes())
        assert load_labelled_csv(file)[0] == ("010", "10", "9")


class TestBadRows:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([], r"pets\.csv' is empty: .* a CSV file"),
            (["path,label"], "no rows below its header"),
            (["path,label", "", ",", ""], "no rows below its header"),
            (["a.png,cat"], r"line 1 lacks the column 'path', 'label' \(it has 'a.png', 'cat'\)"),
            (["path;label", "a.png;cat"], "semicolons: .*with commas"),
            (['"path"\t"label"', '"a.png"\t"cat"'], "tabs: .*with commas"),
            (["path,class", "a.png,cat"], r"lacks the column 'label' \(it has 'path', 'class'\)"),
            (["path,label,Path", "a.png,cat,b"], "has the column 'path' twice"),
            (["path,label", "a.png,cat", "", "b.png,dog"], "line 3: .* empty"),
            (["path,label", "a.png,cat", " , ", "b.png,dog"], "line 3: .* empty"),
            (["path,label", "a.png,cat, dog"], r"line 2 \(3 fields, the header has 2\)"),
            (["path,label", "a.png,cat", "b.png, "], "line 3: the label is empty; fill it in"),
            (["path,label", ",cat"], "line 2: the path is empty"),
            (["path,label", 'a.png,"cat', "b.png,dog"], "begins in line 2 cannot be read"),
            (["path,label", 'a.png,"the\ncat"', "b.png, "], "line 4: the label is empty"),
            (
                ["path,label,split", "a.png,cat,train", "b.png,dog,dev"],
                r"line 3 \('dev'\): the split is unknown; write one of train, val, valid, "
                "validation, test",
            ),
            (["path,label,split", "a.png,cat,"], r"line 2 \(''\): the split is unknown"),
            (["path,label", "a.png,cat", "b.png,cat"], "only one class, 'cat'"),
            (["path,label", "a.png,cat", "c.png,dog"], r"line 3 \('c.png'\): there is no such"),
            (["path,label", "a.png,cat", ".,dog"], r"line 3 \('.'\): there is no such file"),
            (
                ["path,label", "a.png,cat", "b.png,dog", "./a.png,dog"],
                r"line 4 \('a.png', also in line 2\): an image is listed twice",
            ),
            (
                ["path,label,split", "a.png,cat,train", "b.png,dog,val"],
                r"train lacks 'dog' \(line 3\); val lacks 'cat' \(line 2\)",
            ),
        ],
    )
    def test_they_are_named(self, write: Write, lines: list[str], message: str) -> None:
        file = write(*lines, images=["a.png", "b.png"])
        if not lines:
            file.write_bytes(b"")
        with pytest.raises(UserError, match=message) as caught:
            load(file)
        assert str(file) in str(caught.value)

    def test_the_first_few_are_named_and_the_rest_counted(self, write: Write) -> None:
        file = write("path,label", *[f"{i}.png,cat" for i in range(9)], images=["a.png"])
        with pytest.raises(UserError, match=r"line 2 \('0.png'\), .*line 6 \('4.png'\) and 4 more"):
            load(file)

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
    def test_another_encoding(self, write: Write, encoding: str) -> None:
        file = write("path,label", "a.png,Affe", "b.png,Äffchen", encoding=encoding)
        with pytest.raises(UserError, match=r"not UTF-8 text \(line \d\): save it as UTF-8"):
            load(file)

    def test_the_line_that_is_not_utf_8(self, write: Write) -> None:
        file = write("path,label", "a.png,Affe", "b.png,Äffchen", encoding="latin-1")
        with pytest.raises(UserError, match="line 3"):
            load(file)


class TestLeavingTheFolder:
    def test_by_the_path(self, write: Write, tmp_path: Path) -> None:
        file = write("path,label", "../pets.png,cat", f"{tmp_path}/x.png,dog", "a/../../x.png,dog")
        message = r"line 2 .*line 3 .*line 4 \('a/../../x.png'\): the path leads out of '.*pets'"
        with pytest.raises(UserError, match=message):
            load(file)

    def test_by_a_link(self, write: Write, tmp_path: Path) -> None:
        file = write("path,label", "a.png,cat", "l/a.png,dog", "m.png,dog", images=["a.png"])
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "a.png").write_bytes((file.parent / "a.png").read_bytes())
        (file.parent / "l").symlink_to(outside, target_is_directory=True)
        (file.parent / "m.png").symlink_to(outside / "a.png")
        with pytest.raises(UserError, match=r"line 3 \('l/a.png'\), line 4 \('m.png'\): the path"):
            load(file)

    def test_a_folder_whose_name_only_begins_alike(self, write: Write, tmp_path: Path) -> None:
        file = write("path,label", "../pets2/a.png,cat")
        (tmp_path / "pets2").mkdir()
        (tmp_path / "pets2" / "a.png").touch()
        with pytest.raises(UserError, match="leads out of"):
            load(file)

    def test_paths_and_links_that_stay_inside_are_fine(self, write: Write) -> None:
        names = ["in/a.png", "b.png", "c.png"]
        file = write(images=names)
        root = file.parent
        (root / "l.png").symlink_to("in/a.png")
        lines = ["path,label", "l.png,cat", "in/../b.png,dog", f"{root}/c.png,dog"]
        file.write_text("\n".join(lines))
        split = load_labelled_csv(file)[1]
        assert split.paths == ("l.png", "b.png", "c.png")
        assert [split.read(path).getpixel((0, 0))[0] for path in split.paths] == [0, 7, 14]

    def test_a_link_to_a_listed_image_is_the_same_image(self, write: Write) -> None:
        file = write("path,label", "a.png,cat", "l.png,dog", images=["a.png"])
        (file.parent / "l.png").symlink_to("a.png")
        with pytest.raises(UserError, match=r"line 3 \('l.png', also in line 2\): .*twice"):
            load(file)

    def test_links_that_lead_nowhere_or_in_circles(self, write: Write) -> None:
        file = write("path,label", "a.png,cat", "b.png,dog", "c" * 300 + ",dog")
        (file.parent / "a.png").symlink_to("nowhere.png")
        (file.parent / "b.png").symlink_to("b.png")
        with pytest.raises(UserError, match=r"line 2 .*line 3 .*line 4 .*there is no such file"):
            load(file)

    def test_a_folder_that_is_a_link_itself(self, write: Write, tmp_path: Path) -> None:
        file = write("path,label", *rows("train", column=False), images=everything("train"))
        (tmp_path / "link").symlink_to(file.parent, target_is_directory=True)
        assert len(load(tmp_path / "link" / "pets.csv").train) == 6


class TestUses:
    def test_evaluate_takes_the_test_split_or_everything(self, write: Write) -> None:
        lines = [*rows("train"), "test0.png,dog,test"]
        file = write("path,label,split", *lines, images=everything("train", "test"))
        classes, split, test = load_labelled_data(str(file), seed=0)
        assert (classes, split.paths, split.labels, test) == (("dog",), ("test0.png",), (0,), True)
        file.write_text("\n".join(["path,label,split", *rows("train")]))
        classes, split, test = load_labelled_data(str(file), seed=0, test_split="0.2")
        assert (classes, len(split), test) == (("cat", "dog"), 8, False)

    def test_predict_needs_the_paths_alone(self, write: Write) -> None:
        file = write("label,path", ",b.png", ",a.png", ",b.png", images=["a.png", "b.png"])
        assert list_csv(file) == [str(file.parent / name) for name in ("b.png", "a.png", "b.png")]
        file.write_text("path\n../c.png\n")
        with pytest.raises(UserError, match=r"line 2 \('../c.png'\): the path leads out"):
            list_csv(file)

    def test_capital_letters_in_the_ending(self, write: Write) -> None:
        file = write("path,label", *rows("train", column=False), images=everything("train"))
        assert load(file.rename(file.with_name("PETS.CSV"))).name == "PETS"
