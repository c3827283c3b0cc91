"""Kills, full disks, damaged checkpoints and damaged images: which of them a run survives.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills 20 --checkpoints 20 --images 100 --json faults.json

A kill or a damaged checkpoint passes if the resumed run ends with exactly the weights of an
undisturbed one. A full disk passes if one message reports it, only complete files are left, and the
run resumes to the same weights. A damaged image passes if `train` and `predict` read it, or both
leave it out and report the number. No traceback may be shown.
"""

import argparse
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import delta_transfer.inference.predictor
import delta_transfer.runs.run  # noqa: F401, so that a copy of this process has it
from delta_transfer.cli.main import main as command

CLASSES = ("brick", "grass", "gravel")
SHARED = "--image-size=32 --batch-size=8 --num-workers=0 --device=cpu".split()
OPTIONS = [*SHARED, "--val-fraction=0.25", "--test-split=0.25", "--folds=0"]
TRAINED = "--method=delta --strength=1 --epochs=3 --lr=1e-4 --checkpoint-steps=1".split()
DAMAGES = ("cut", "bits", "zeros", "renamed", "noise", "bomb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    found: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DELTA_TRANSFER_CACHE"] = str(folder / "cache")
        data = images(folder / "data", each=12)
        whole = folder / "whole"
        code, said, seconds = run_train(data, whole)
        assert code == 0, said
        expected = weights(whole)
        print(f"a run that nothing happens to takes {seconds:.1f} s", flush=True)
        for kind, trials in (
            ("SIGKILL", kills(data, folder, expected, seconds, options.kills, draw)),
            ("full disk", full_disks(data, folder, expected)),
            ("damaged checkpoint", checkpoints(data, folder, expected, options.checkpoints, draw)),
            ("damaged image", damaged_images(folder, options.images, draw)),
        ):
            survived = tried = 0
            for good, count, why in trials:
                survived, tried = survived + good, tried + count
                if why:
                    print(f"{kind}: {why}", flush=True)
            found[kind] = survived, tried
            print(f"{kind:20} survived {survived} of {tried}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


Trial = tuple[int, int, str]
"""How many were survived, of how many, and what went wrong."""


def images(folder: Path, *, each: int) -> Path:
    """Crops of photographed textures, a folder a class."""
    draw = np.random.default_rng(0)
    for name in CLASSES:
        whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        (folder / name).mkdir(parents=True)
        for number in range(each):
            left, top = draw.integers(0, 512 - 48, 2).tolist()
            whole.crop((left, top, left + 48, top + 48)).save(folder / name / f"{number:02}.png")
    return folder


def in_child(work: Callable[[], int], *, kill_after: float | None = None) -> tuple[int, str, float]:
    """What a copy of this process does, perhaps killed: exit code, what it says, and seconds."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = os.fork()  # in this process nothing is computed, so that a copy of it works
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
            try:
                os._exit(work())
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(70)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace"), time.perf_counter() - started


def run_train(
    data: Path,
    out: Path,
    *,
    before: Callable[[], None] = lambda: None,
    kill_after: float | None = None,
) -> tuple[int, str, float]:
    """The command train, which resumes what is there."""

    def work() -> int:
        before()
        return command(["train", str(data), f"--out={out}", *OPTIONS, *TRAINED, "--resume"])

    return in_child(work, kill_after=kill_after)


def weights(run: Path) -> bytes:
    """Of the model; empty without one."""
    file = run / "model" / "model.safetensors"
    return file.read_bytes() if file.is_file() else b""


def outcome(run: Path, code: int, said: str, expected: bytes) -> str:
    """What is wrong with a run; empty if nothing."""
    if "Traceback" in said:
        return f"a traceback: {said.strip().splitlines()[-1]}"
    if code != 0:
        return f"exit code {code}: {said.strip().splitlines()[-1]}"
    return "" if weights(run) == expected else "other weights"


def kills(
    data: Path, folder: Path, expected: bytes, seconds: float, count: int, draw: random.Random
) -> Iterator[Trial]:
    """Up to ten kills a run, at random times."""
    left = count
    while left:
        out, done = folder / "killed", 0
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(min(10, left)):
            code, said, _ = run_train(data, out, kill_after=draw.uniform(0, seconds))
            if code != -signal.SIGKILL:  # it was over before
                break
            done += 1
            assert "Traceback" not in said, said
        code, said, _ = run_train(data, out)
        why = outcome(out, code, said, expected)
        left -= done
        yield (0 if why else done), done, why


def full_disks(data: Path, folder: Path, expected: bytes) -> Iterator[Trial]:
    """The disk is full from the first, second ... write on that has to reach it."""
    number = 0
    while True:
        out = folder / f"full-{number}"

        def fill(after: int = number) -> None:
            sync, count = os.fsync, [0]

            def fsync(descriptor: int) -> None:
                count[0] += 1
                if count[0] > after:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(descriptor)

            os.fsync = fsync

        code, said, _ = run_train(data, out, before=fill)
        if code == 0:
            return  # there are no more writes
        why = ""
        if code != 2 or "Traceback" in said or "No space left on device" not in said:
            why = f"write {number}, exit code {code}: {said.strip().splitlines()[-1]}"
        elif any(path.name.startswith(".") for path in out.rglob("*")):
            why = f"write {number} leaves a part of a file"
        else:
            code, said, _ = run_train(data, out)
            why = outcome(out, code, said, expected)
        yield int(not why), 1, why
        shutil.rmtree(out, ignore_errors=True)
        number += 1


def checkpoints(
    data: Path, folder: Path, expected: bytes, count: int, draw: random.Random
) -> Iterator[Trial]:
    """A run that was stopped has one of its checkpoints cut, or a bit in it flipped."""
    stopped = folder / "stopped"

    def stop() -> None:
        saved = []

        def listen(event: str, args: tuple[object, ...]) -> None:
            if event == "os.rename" and str(args[0]).endswith("checkpoints/next.ckpt"):
                saved.append(event)
                if len(saved) > 5:  # the last state, that before and the best are there
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(listen)

    code, said, _ = run_train(data, stopped, before=stop)
    assert code == -signal.SIGKILL, said
    files = sorted(path.relative_to(stopped) for path in stopped.rglob("*.ckpt"))
    for number in range(count):
        out = folder / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(stopped, out)
        # It was stopped in its folder, which the options name.
        file = out / draw.choice(files)
        content = bytearray(file.read_bytes())
        if number % 2:
            file.write_bytes(content[: draw.randrange(len(content))])
        else:
            place = draw.randrange(8 * len(content))
            content[place // 8] ^= 1 << place % 8
            file.write_bytes(content)
        code, said, _ = run_train(data, out)
        why = outcome(out, code, said, expected)
        yield int(not why), 1, f"{file.relative_to(out)}: {why}" if why else ""


def damaged_images(folder: Path, count: int, draw: random.Random) -> Iterator[Trial]:
    """Fifty at a time among good ones."""
    number = 0
    while number < count:
        some = min(50, count - number)
        data, extra = folder / f"images-{number}", folder / f"asked-{number}"
        images(data, each=12)
        extra.mkdir()
        names = []
        for one in range(number, number + some):
            damage, kind = DAMAGES[one % len(DAMAGES)], draw.choice(["png", "jpeg", "gif", "webp"])
            content, suffix = damaged(draw, kind, damage)
            names.append(f"damaged{one:03}.{suffix}")
            (data / draw.choice(CLASSES) / names[-1]).write_bytes(content)
            (extra / names[-1]).write_bytes(content)
        out = folder / f"run-{number}"
        arguments = ["train", str(data), f"--out={out}", *OPTIONS, "--method=probe"]
        code, said, _ = in_child(lambda arguments=arguments: command(arguments))
        table = folder / f"{number}.csv"
        arguments = ["predict", str(out), str(extra), f"--csv={table}", "--device=cpu"]
        asked, answer, _ = in_child(lambda arguments=arguments: command(arguments))
        answered = table.read_text() if table.is_file() else ""
        wrong = [
            text.strip().splitlines()[-1]
            for status, text in ((code, said), (asked, answer))
            if status or "Traceback" in text
        ]
        told = [re.search(r"(\d+) of \d+ images cannot be read", text) for text in (said, answer)]
        missing = [int(found[1]) if found else 0 for found in told]
        gone = sum(name not in answered for name in names)
        if not wrong and missing != [gone, gone]:
            wrong.append(f"{gone} of {some} are not answered for, {missing} were told of")
        yield (0 if wrong else some), some, "; ".join(wrong)
        number += some


def damaged(draw: random.Random, kind: str, damage: str) -> tuple[bytes, str]:
    """An image that something has happened to, and the suffix of its name."""
    name = draw.choice(CLASSES)
    whole = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    stream = io.BytesIO()
    if damage == "bomb":
        Image.new("1", (draw.randrange(20_000, 60_000), 20_000)).save(stream, "png")
        return stream.getvalue(), "png"
    whole.crop((0, 0, 64, 64)).save(stream, kind)
    content = bytearray(stream.getvalue())
    if damage == "cut":
        return bytes(content[: draw.randrange(1, len(content))]), kind
    if damage == "zeros":
        first = draw.randrange(len(content))
        content[first : first + draw.randrange(1, 200)] = b""
        return (bytes(content), kind) if draw.random() < 0.5 else (b"", kind)
    if damage == "renamed":
        return bytes(content), draw.choice(["png", "jpg", "bmp", "tiff"])
    if damage == "noise":
        return draw.randbytes(draw.randrange(1, 2000)), kind
    for _ in range(draw.randrange(1, 20)):
        place = draw.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
    return bytes(content), kind


if __name__ == "__main__":
    main()
