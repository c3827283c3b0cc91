"""Runs on molecules from a CSV file of SMILES to the report, by the commands of images."""

import csv
import json

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
pytest.importorskip("rdkit", reason="RDKit is not installed")

from delta_transfer import TrainOptions, train
from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.cli.commands.evaluate import format_evaluation
from delta_transfer.cli.main import main
from delta_transfer.data.graphs.loader import collate_graphs
from delta_transfer.data.molecules.nci import load_nci_smiles
from delta_transfer.data.molecules.scaffold_split import scaffold
from delta_transfer.data.molecules.smiles import read_molecule
from delta_transfer.data.task import Split, pool_train_and_val
from delta_transfer.errors import UserError
from delta_transfer.inference.predictor import Predictor
from delta_transfer.report.run_files import read_molecules
from delta_transfer.runs.folder import find_foreign_file
from delta_transfer.runs.model_soup import format_percent, mixtures
from delta_transfer.runs.predictions import atom_distances
from delta_transfer.runs.preparation.folds import split_folds
from delta_transfer.runs.preparation.task import find_data
from tests.data.graphs.test_tudataset import write as write_tu

MODEL = "pretrain-gnns/gin"
SHARED = ["--model", MODEL, "--smiles-column", "smiles", "--device", "cpu", "--batch-size", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CSV file with two questions about 80 molecules, some answers missing, and weights."""
    folder = tmp_path_factory.mktemp("molecules")
    with (folder / "molecules.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "nitrogen", "chlorine"])
        for number, smiles in enumerate(load_nci_smiles()[:80]):
            chlorine = "" if number % 7 == 0 else int("Cl" in smiles)
            writer.writerow([smiles, int("N" in smiles or "n" in smiles), chlorine])
    torch.manual_seed(0)
    backbone = load_graph_backbone(MODEL, num_outputs=2, spec=GraphSpec(), pretrained=False)
    state = backbone.module.state_dict()
    pretrained = {name: tensor for name, tensor in state.items() if not name.startswith("head")}
    save_file(pretrained, folder / "weights.safetensors")
    return folder


def options(folder, out, **more):
    """Of a run in a folder."""
    return TrainOptions(
        **{
            "data": str(folder / "molecules.csv"),
            "out": str(out),
            "model": MODEL,
            "weights": str(folder / "weights.safetensors"),
            "smiles_column": "smiles",
            "test_split": "0.25",
            "split": "random",
            "method": "delta",
            "strength": 1.0,
            "attention": "gradient",
            "epochs": 3,
            "folds": 0,
            "batch_size": 16,
            "device": "cpu",
            "loggers": "csv",
            **more,
        }
    ).resolve()


@pytest.fixture(scope="module")
def run(folder):
    """A finished run of DELTA with attention."""
    return train(options(folder, folder / "run")).folder


def test_a_run_leaves_figures_by_roc_auc(run):
    result = json.loads((run / "result.json").read_text())
    assert result["metric_name"] == "roc_auc"
    assert 0 <= result["test_roc_auc"] <= 1
    assert result["test_accuracy"] is None
    assert result["taps"] == [f"layers.{i}" for i in range(1, 5)]
    page = (run / "report.html").read_text()
    assert "ROC-AUC" in page
    assert "Molecules that moved" in page


def test_features_start_where_the_source_has_them_and_move(run):
    with (run / "drift.csv").open() as file:
        rows = [(int(row["epoch"]), float(row["distance"])) for row in csv.DictReader(file)]
    assert max(distance for epoch, distance in rows if epoch == 0) == 0
    assert min(distance for epoch, distance in rows if epoch == 3) > 1e-6


def test_what_is_said_of_a_run_is_of_molecules(run, folder):
    assert json.loads((run / "result.json").read_text())["sample_type"] == "molecule"
    log, page = (run / "train.log").read_text(), (run / "report.html").read_text()
    assert "20 test molecules" in log
    assert "20 test molecules" in page
    said = format_evaluation(Predictor(run, device="cpu").evaluate(str(folder / "molecules.csv")))
    assert said[0].split() == ["molecules", "20"]
    assert said[2].startswith("molecules/s ")
    for text in (log, page, *said):
        assert "images" not in text.replace('class="images"', "").replace(".images", "")


def test_strength_auto_takes_the_better_of_two_that_began_with_heads_of_their_own(folder, tmp_path):
    own = {"method": "delta", "strength": "auto", "epochs": 1}
    found = train(options(folder, tmp_path / "run", **own))
    selection = found.model_selection
    singles = mixtures(2, averaged=False)
    assert list(selection.losses) == [format_percent(one) for one in singles]
    assert selection.mixing_coefficients in singles
    assert selection.strengths == (1.0, 0.03)
    assert (found.folder / "strength-0.03" / "metrics.csv").is_file()


def test_folds_keep_scaffolds_together(folder, tmp_path):
    config = options(folder, tmp_path, split="scaffold").resolve()
    task = find_data(config)
    paths = pool_train_and_val(task).paths
    folds = split_folds(config, task, 2)
    assert sorted(i for _, val in folds for i in val) == list(range(len(paths)))
    ones, others = ({scaffold(paths[i]) for i in val} for _, val in folds)
    assert not ones & others
    spread = find_data(options(folder, tmp_path, split="random"))
    assert len({scaffold(path) for path in pool_train_and_val(spread).paths}) < 60
    for _, val in split_folds(config, spread, 2):
        assert len(val) == len(pool_train_and_val(spread).paths) / 2


@pytest.mark.slow
def test_folds_of_molecules(folder, tmp_path):
    own = {"split": "scaffold", "method": "l2", "epochs": 1, "folds": 2}
    result = train(options(folder, tmp_path / "run", **own))
    assert (result.num_folds, result.num_train_samples) == (2, 60)
    with (result.folder / "metrics.csv").open() as file:
        figures = [row["val_roc_auc"] for row in csv.DictReader(file) if row["val_roc_auc"]]
    assert len(figures) == 2
    assert all(0 <= float(figure) <= 1 for figure in figures)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"split": "scaffold", "folds": 55}, "only .. scaffolds .* or `split=random`"),
        ({"split": "random", "folds": 61}, "`folds=61`: .*60"),
    ],
)
def test_more_folds_than_there_can_be(folder, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        train(options(folder, tmp_path / "run", **wrong))


def test_folds_of_a_set_with_splits_of_its_own(folder, tmp_path):
    rows = (folder / "molecules.csv").read_text().splitlines()[1:]
    table = ["smiles,p_np", *(row.rpartition(",")[0] for row in rows)]
    (tmp_path / "BBBP.csv").write_text("\n".join(table))
    own = {"data": "moleculenet/BBBP", "smiles_column": None, "test_split": "test", "folds": 3}
    with pytest.raises(UserError, match=r"own validation split.* leave the option out$"):
        train(options(folder, tmp_path / "run", data_root=str(tmp_path), **own))


def test_what_molecules_cannot_be_read_from_is_said_without_options_of_train(run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert main(["evaluate", str(run), str(tmp_path / "images"), "--device=cpu"]) == 2
    said = capsys.readouterr().err
    assert "images' is not a CSV file" in said
    assert "--smiles-column" not in said


def test_the_molecules_drawn_are_those_that_moved_most(run, folder):
    predictor = Predictor(run, device="cpu")
    state = folder / "weights.safetensors"
    source = load_graph_backbone(MODEL, num_outputs=2, spec=GraphSpec(), weights=state).module
    with (run / "predictions.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    split = Split(tuple(names), (0,) * len(names), read_molecule)
    far = atom_distances(
        split, network=predictor.backbone.module, source=source, taps=["layers.2", "layers.4"]
    )
    assert [len(one) for one in far] == [len(read_molecule(name).x) for name in names]
    farthest = max(range(len(names)), key=lambda i: float(far[i].mean()))
    drawn = read_molecules(run)
    assert drawn[0].smiles == names[farthest]
    assert drawn[0].distance == pytest.approx(float(far[farthest].mean()), rel=1e-4)
    assert [one.distance for one in drawn] == sorted((one.distance for one in drawn), reverse=True)


def test_predictions_are_those_of_the_network_on_the_molecule_alone(run, tmp_path, capsys):
    (tmp_path / "asked.smi").write_text("CCO ethanol\nnonsense\nc1ccccc1Cl\n")
    code = main(["predict", str(run), str(tmp_path / "asked.smi"), "CCN", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [one["path"] for one in found] == ["CCO", "c1ccccc1Cl", "CCN"]
    network = Predictor(run, device="cpu").backbone.module.eval()
    for one in found:
        graphs, _ = collate_graphs([(read_molecule(one["path"]), 0)])
        with torch.no_grad():
            expected = torch.sigmoid(network(graphs))[0]
        assert list(one["probabilities"]) == ["nitrogen", "chlorine"]
        values = torch.tensor(list(one["probabilities"].values()))
        assert torch.allclose(values, expected, atol=1e-5)


def test_evaluation_of_the_runs_own_data_repeats_its_figure(run, folder):
    found = Predictor(run, device="cpu").evaluate(str(folder / "molecules.csv"))
    result = json.loads((run / "result.json").read_text())
    assert found.score == pytest.approx(result["test_roc_auc"], abs=1e-6)


@pytest.mark.slow
def test_going_on_gives_the_same_bytes(run, folder, monkeypatch):
    from delta_transfer.training.module import FineTuneModule

    class Stopped(Exception):
        pass

    step, count = FineTuneModule.training_step, [0]

    def stopping(self, batch, index):
        count[0] += 1
        if count[0] == 6:
            raise Stopped
        return step(self, batch, index)

    again = folder / "again"
    with monkeypatch.context() as patch:
        patch.setattr(FineTuneModule, "training_step", stopping)
        with pytest.raises(Stopped):
            train(options(folder, again, checkpoint_steps=1))
    train(options(folder, again, checkpoint_steps=1, resume=True))
    model = "model/model.safetensors"
    assert (again / model).read_bytes() == (run / model).read_bytes()


@pytest.mark.slow
def test_methods_are_compared(folder, capsys):
    out = folder / "compared"
    args = ["compare", str(folder / "molecules.csv"), "--out", str(out), "--seeds", "0,1"]
    args += ["--methods", "probe,l2", "--epochs", "1", "--split", "random"]
    args += ["--test-split", "0.25", "--weights", str(folder / "weights.safetensors"), *SHARED]
    assert main(args) == 0
    assert "ROC-AUC" in capsys.readouterr().out
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert "ROC-AUC" in (out / "report.html").read_text()


@pytest.fixture(scope="module")
def tu_run(tmp_path_factory):
    """A finished run on paths and points, which are in all splits."""
    root = tmp_path_factory.mktemp("tu")
    write_tu(root / "TOY/raw")
    spec, model = GraphSpec(node_features="numbers", num_node_features=3), "pyg/GIN-2x8"
    torch.manual_seed(0)
    network = load_graph_backbone(model, num_outputs=2, spec=spec, pretrained=False).module
    state = {key: t for key, t in network.state_dict().items() if not key.startswith("head")}
    save_file(state, root / "weights.safetensors")
    own = {"data": "tu/TOY", "data_root": str(root), "model": model, "epochs": 1}
    own |= {"smiles_column": None, "test_split": "test", "split": "auto"}
    return train(options(root, root / "run", **own)).folder


def test_graphs_of_tudataset_are_learnt_and_evaluated(tu_run, capsys):
    result = json.loads((tu_run / "result.json").read_text())
    assert (result["metric_name"], result["taps"]) == ("accuracy", ["layers.0", "layers.1"])
    assert (tu_run / "attention.safetensors").is_file()
    assert main(["evaluate", str(tu_run), "tu/TOY", "--device=cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == result["test_accuracy"]


def test_equal_graphs_in_published_splits_are_a_note(tu_run):
    log = (tu_run / "train.log").read_text()
    assert (
        "graphs that are in two splits: 6 of the 6 of val in train, "
        "4 of the 4 of test in train, 4 of the 4 of test in val"
    ) in log
    assert "remove one of each" not in log


def test_equal_graphs_in_a_file_are_warned_of(folder, tmp_path):
    rows = (folder / "molecules.csv").read_text().splitlines()
    splits = ["test"] * 6 + ["val"] * 14 + ["train"] * 60
    copied = [f"{row},{split}" for row, split in zip(rows[1:], splits, strict=True)]
    copied += [row.replace(",test", ",train") for row in copied[:3]]
    (tmp_path / "copied.csv").write_text("\n".join([f"{rows[0]},split", *copied]))
    own = {"data": str(tmp_path / "copied.csv"), "test_split": "test", "method": "probe"}
    run = train(options(folder, tmp_path / "run", **own)).folder
    log = (run / "train.log").read_text()
    assert "3 of 6 graphs of the split test are in train too" in log


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_method_of_images_is_refused_before_a_graph_is_seen(
    folder, tmp_path, capsys, monkeypatch, command
):
    monkeypatch.setattr("delta_transfer.runs.preparation.prepare.collect_features", None)
    args = [command, str(folder / "molecules.csv"), "--out", str(tmp_path / "run"), *SHARED]
    args += ["--weights", str(folder / "weights.safetensors")]
    args += ["--methods=l2,lwf", "--jobs=1"] if command == "compare" else ["--method=lwf"]
    assert main(args) == 2
    assert "lwf" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "pypi/efficientnet_lite0", "weights": None}, "pretrain-gnns/gin"),
        ({"image_size": 64}, "`image_size` is for images"),
        ({"mixup": 0.2}, "`mixup=0.2`"),
        ({"augment": "randaugment"}, "`augment` is for images"),
    ],
)
def test_what_only_images_have_is_refused_before_anything_is_written(folder, tmp_path, wrong, said):
    config = options(folder, tmp_path / "run", **wrong)
    with pytest.raises(UserError, match=said):
        train(config)
    assert not (tmp_path / "run").exists()


def test_every_file_of_a_run_on_molecules_is_known_for_one(run, folder):
    result = json.loads((run / "result.json").read_text())
    assert train(options(folder, run, resume=True)).test_roc_auc == result["test_roc_auc"]
    assert find_foreign_file(run) is None


def write_answers(path, header, answers):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(answers)


class TestEvaluationOfOtherData:
    def test_columns_that_are_not_asked_for_do_not_matter(self, run, tmp_path):
        rows = [
            [smiles, number % 2, 0.5] for number, smiles in enumerate(load_nci_smiles()[90:102])
        ]
        write_answers(tmp_path / "other.csv", ["smiles", "chlorine", "weight"], rows)
        found = Predictor(run, device="cpu").evaluate(str(tmp_path / "other.csv"))
        figures = {column.name: column.num_labelled for column in found.targets}
        assert figures == {"nitrogen": 0, "chlorine": 12}

    def test_values_are_no_answers_to_questions(self, run, tmp_path):
        rows = [[smiles, 0.1 * n] for n, smiles in enumerate(load_nci_smiles()[90:96])]
        write_answers(tmp_path / "other.csv", ["smiles", "chlorine"], rows)
        with pytest.raises(UserError, match="labels other than 0 and 1"):
            Predictor(run, device="cpu").evaluate(str(tmp_path / "other.csv"))

    def test_without_a_column_of_the_run(self, run, tmp_path):
        rows = [[smiles, n % 2] for n, smiles in enumerate(load_nci_smiles()[90:96])]
        write_answers(tmp_path / "other.csv", ["smiles", "toxic"], rows)
        with pytest.raises(UserError, match=r"nitrogen, chlorine"):
            Predictor(run, device="cpu").evaluate(str(tmp_path / "other.csv"))

    def test_images_are_refused(self, run):
        with pytest.raises(UserError, match=r"(?i)classes|images"):
            Predictor(run, device="cpu").evaluate("sklearn/digits")


@pytest.mark.slow
def test_a_figure_that_is_undefined_ends_no_comparison(folder, tmp_path, capsys):
    rows = [[smiles, int(number == 3)] for number, smiles in enumerate(load_nci_smiles()[:60])]
    write_answers(tmp_path / "rare.csv", ["smiles", "rare"], rows)
    args = ["compare", str(tmp_path / "rare.csv"), "--out", str(tmp_path / "c"), "--seeds", "0"]
    args += ["--methods", "probe", "--split", "random", "--test-split", "0.25", *SHARED]
    assert main([*args, "--weights", str(folder / "weights.safetensors")]) == 2
    assert "no run has a defined ROC-AUC on the" in capsys.readouterr().err
