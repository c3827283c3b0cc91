"""Published packages: the files of sdist and wheel, their metadata, and versions by tags."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Files for the repository only; all others are in the sdist.
NOT_PUBLISHED = (
    ".ci/",
    ".github/",
    ".git_archival.txt",
    ".gitattributes",
    ".pre-commit-config.yaml",
)
OTHERS = {"PKG-INFO"}  # in the sdist only
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def git(*arguments: str, where: Path = ROOT) -> str:
    """Run git without the repository and settings of the environment; return its output."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *who, *arguments]
    done = subprocess.run(
        command, cwd=where, env=ours | nobody, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """Return the existing files that git tracks."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs the repository and git")
    names = git("ls-files", "-z").split("\0")[:-1]
    return {name for name in names if (ROOT / name).is_file()}


def build(source: Path, out: Path, *what: str) -> None:
    """Build without a network: the requirements are installed with [dev]."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *what, "."]
    environment = {
        n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "SETUPTOOLS"))
    }
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """Clone the working tree with a tag and untracked files; build an sdist and its wheel."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    git("init", "-q", where=clone)
    git("add", "-A", "-f", where=clone)
    git("commit", "-qm", "all", where=clone)
    git("tag", "v1.2.3", where=clone)
    git("tag", "demo-9.9.9", where=clone)  # not a version
    for leftover in ("runs/a/model.ckpt", "dist/old.whl", "notes.txt", "build/docs/index.html"):
        (clone / leftover).parent.mkdir(parents=True, exist_ok=True)
        (clone / leftover).write_text("not to be published")
    out = tmp_path_factory.mktemp("out")
    build(clone, out)
    return clone, out


@pytest.fixture(scope="module")
def wheel(built):
    return built[1] / "delta_transfer-1.2.3-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("delta_transfer-1.2.3.dist-info/METADATA").decode()
    return Parser().parsestr(text)


class TestRepository:
    def test_every_file_is_published_or_listed_as_unpublished(self, tracked):
        published = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
        always = {"pyproject.toml", ".gitignore"}
        lost = {
            name
            for name in tracked - always
            if PurePosixPath(name).parts[0] not in published and not name.startswith(NOT_PUBLISHED)
        }
        assert not lost, f"add to only-include of the sdist in pyproject.toml: {sorted(lost)}"

    def test_python_versions_agree(self):
        told = [one for one in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", one)]
        assert [one.rpartition(" ")[2] for one in told] == PYTHONS
        assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"

    def test_the_ci_matrix_has_them_and_the_oldest_torch(self):
        path = ROOT / ".github" / "workflows" / "ci.yml"
        if not path.is_file():
            pytest.skip("an sdist has no workflows")
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        matrix = jobs["test"]["strategy"]["matrix"]
        assert matrix["python"] == PYTHONS
        (oldest,) = matrix["include"]
        assert oldest["python"] == PYTHONS[0]
        for library in ("torch", "torchvision"):
            assert f"{library}>={oldest[library]}" in PROJECT["project"]["dependencies"]

    def test_dev_contains_the_extras_for_tests(self):
        extras = PROJECT["project"]["optional-dependencies"]
        assert {*extras["hf"], *extras["graph"], *extras["export"]} <= set(extras["dev"])
        wanted = {re.split(r"[>=]", one)[0] for one in PROJECT["build-system"]["requires"]}
        assert wanted <= {re.split(r"[>=]", one)[0] for one in extras["dev"]}


class TestReleaseNotes:
    CHANGELOG = (
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n\n### Added\n\n- A.\n\n"
        "## [1.1.0] - 2026-01-01\n\n- B.\n"
    )
    CITATION = "cff-version: 1.2.0\nversion: 1.2.0\ntitle: a\n"

    @pytest.fixture
    def notes(self):
        path = ROOT / ".github" / "release_notes.py"
        if not path.is_file():
            pytest.skip("an sdist has no workflows")
        spec = importlib.util.spec_from_file_location("release_notes", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.release_notes

    def test_they_are_the_section_of_the_version(self, notes):
        assert notes("v1.2.0", self.CHANGELOG, self.CITATION) == "### Added\n\n- A.\n"

    def test_a_version_without_a_section_is_rejected(self, notes):
        with pytest.raises(SystemExit, match=r"says nothing of 1\.3\.0: .* Unreleased, 1\.2\.0, 1"):
            notes("v1.3.0", self.CHANGELOG, "version: 1.3.0\n")

    def test_changes_above_the_section_are_rejected(self, notes):
        left = self.CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- C.\n")
        with pytest.raises(SystemExit, match=r"to a section \[1\.2\.0\] - DATE"):
            notes("v1.2.0", left, self.CITATION)

    def test_another_version_in_the_citation_is_rejected(self, notes):
        with pytest.raises(SystemExit, match=r"'version: 1\.1\.0'"):
            notes("v1.1.0", self.CHANGELOG, self.CITATION)


@pytest.mark.slow
class TestBuild:
    def test_the_sdist_has_what_builds_and_tests_it(self, built, tracked):
        with tarfile.open(built[1] / "delta_transfer-1.2.3.tar.gz") as archive:
            files = {one.name.partition("/")[2] for one in archive if one.isfile()}
        expected = {name for name in tracked if not name.startswith(NOT_PUBLISHED)}
        assert files == expected | OTHERS

    def test_the_wheel_has_the_package_and_the_recipes(self, wheel, tracked):
        with zipfile.ZipFile(wheel) as archive:
            files = set(archive.namelist())
        sources = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
        recipes = {f"delta_transfer/{name}" for name in tracked if name.startswith("recipes/")}
        about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
        expected = sources | recipes | {f"delta_transfer-1.2.3.dist-info/{name}" for name in about}
        assert files == expected
        assert {"delta_transfer/py.typed", "delta_transfer/report/base.html.j2"} <= files

    def test_a_wheel_of_the_tree_is_the_same(self, built, wheel, tmp_path):
        build(built[0], tmp_path, "--wheel")
        assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()

    def test_the_metadata(self, metadata):
        assert (metadata["Name"], metadata["Version"]) == ("delta-transfer", "1.2.3")
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["License-Expression"] == "Apache-2.0"
        extras = PROJECT["project"]["optional-dependencies"]
        assert set(metadata.get_all("Provides-Extra")) == set(extras)
        needed = [one for one in metadata.get_all("Requires-Dist") if "extra ==" not in one]
        assert len(needed) == len(PROJECT["project"]["dependencies"])
        assert metadata.get_all("Project-URL") is None  # it has no home page yet
        assert "delta-transfer" in metadata.get_payload()

    def test_twine_accepts_both(self, built):
        files = [str(path) for path in sorted(built[1].iterdir())]
        command = [sys.executable, "-m", "twine", "check", "--strict", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert len(files) == 2

    def test_after_the_tag_it_is_a_development_version_of_the_next(self, built, tmp_path):
        clone = tmp_path / "clone"
        git("clone", "-q", str(built[0]), str(clone), where=tmp_path)
        git("commit", "-qm", "more", "--allow-empty", where=clone)
        commit = git("rev-parse", "HEAD", where=clone)
        version = version_of(clone)
        assert version == f"1.2.4.dev1+g{commit[: len(version.partition('+g')[2])]}"
        assert len(version.partition("+g")[2]) >= 7

    def test_a_shallow_clone_builds(self, built, tmp_path):
        git("clone", "-q", "--depth=1", "--no-tags", built[0].as_uri(), "a", where=tmp_path)
        assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", version_of(tmp_path / "a"))

    def test_a_folder_without_git_has_the_fallback_version(self, built, tmp_path):
        folder = tmp_path / "folder"
        shutil.copytree(built[0], folder, ignore=shutil.ignore_patterns(".git"))
        assert version_of(folder) == PROJECT["tool"]["hatch"]["version"]["fallback-version"]
        git("init", "-q", where=tmp_path)  # another repository around it
        git("commit", "-qm", "theirs", "--allow-empty", where=tmp_path)
        git("tag", "v7.0.0", where=tmp_path)
        assert version_of(folder) == "0.1.dev0"

    def test_git_is_not_needed(self, built, tmp_path):
        clone = tmp_path / "clone"
        shutil.copytree(built[0], clone)
        assert version_of(clone, path=str(tmp_path)) == "0.1.dev0"

    def test_a_download_of_a_tag_has_its_version(self, built, tmp_path):
        git("archive", "--format=tar", "-o", str(tmp_path / "a.tar"), "v1.2.3", where=built[0])
        with tarfile.open(tmp_path / "a.tar") as archive:
            archive.extractall(tmp_path / "a", filter="data")
        assert version_of(tmp_path / "a") == "1.2.3"


def version_of(folder: Path, **environment: str) -> str:
    """Return the version of a build in a folder."""
    ours = {
        n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "SETUPTOOLS", "GIT"))
    }
    ours |= {name.upper(): value for name, value in environment.items()}
    command = [sys.executable, "-m", "hatchling", "metadata", "version"]
    done = subprocess.run(command, cwd=folder, env=ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_api_and_the_commands_need_no_extra():
    code = (
        "import sys\n"
        "for name in ('torch_geometric', 'rdkit', 'datasets', 'onnx', 'onnxruntime', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "import delta_transfer, delta_transfer.cli.main\n"
        "for name in delta_transfer.__all__:\n"
        "    getattr(delta_transfer, name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_installed_package_has_a_version():
    assert re.match(r"\d+\.\d+", importlib.metadata.version("delta-transfer"))
