import copy
import errno
import json
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from delta_transfer.attention import estimate_attention
from delta_transfer.attention.estimators import averaging, job
from delta_transfer.attention.estimators import checkpoint as module
from delta_transfer.attention.estimators.ablation import ExactScorer
from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.features.probe import LinearProbe
from tests.attention.scorers import OneByOne, batches, patterns
from tests.networks import conv_net

TAPS = ("conv1", "conv3")
CHANNELS = 4 + 6
COUNT = 45  # in batches of 16: pieces of 8, 8 | 8, 8 | 8, 5
PIECES = 6


class Stopped(Exception):
    pass


class Watched(OneByOne):
    """Remembers what it scored, and stops before a piece."""

    scored: list[int]
    stop_at: int | None

    def __call__(self, inputs, targets, *, progress=None):
        if len(self.scored) == self.stop_at:
            raise Stopped
        self.scored.append(len(targets))
        return super().__call__(inputs, targets, progress=progress)


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """Exact scores of tiny networks, and a file that is written after each piece of eight."""
    monkeypatch.setattr(job, "CHUNK_SIZE", 8)
    monkeypatch.setattr(averaging, "ExactScorer", Watched)
    monkeypatch.setattr(module, "WRITE_INTERVAL_S", 0.0)
    monkeypatch.setattr(Watched, "scored", [], raising=False)
    monkeypatch.setattr(Watched, "stop_at", None, raising=False)
    return Watched


def some_probe(seed=9) -> LinearProbe:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator)
    return LinearProbe(weight, torch.randn(4, generator=generator), 1.0)


def call(partial=None, *, net=None, data=None, size=16, **changes):
    x, y = patterns(COUNT) if data is None else data
    options = {"probe": some_probe(), "taps": TAPS, "estimator": "exact", "seed": 4}
    Watched.scored = []
    return estimate_attention(
        net or conv_net(outputs=4),
        batches(x, y, size),
        checkpoint_path=partial,
        **(options | changes),
    )


def interrupted(path, after, **changes) -> None:
    Watched.stop_at = after
    with pytest.raises(Stopped):
        call(path, **changes)
    Watched.stop_at = None


def same(found, expected) -> bool:
    """Bit for bit."""
    return (
        found.samples == expected.samples
        and found.uncertainty == expected.uncertainty
        and all(
            torch.equal(getattr(found, kind)[tap], getattr(expected, kind)[tap])
            for kind in (
                "scores",
                "standard_errors",
                "variance",
                "influential_samples",
                "attention",
            )
            for tap in TAPS
        )
    )


@pytest.mark.parametrize("after", range(1, PIECES))
def test_an_interrupted_call_resumes_and_ends_the_same(tmp_path, after):
    path = tmp_path / "some" / "partial"
    expected = call()
    interrupted(path, after)
    assert path.is_file()
    found = call(path)
    assert len(Watched.scored) == PIECES - after
    assert same(found, expected)
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_it_can_be_interrupted_again_and_again(tmp_path):
    path, expected = tmp_path / "partial", call()
    for after in (2, 1, 2):
        interrupted(path, after)
    assert same(call(path), expected)
    assert Watched.scored == [5]


def test_so_it_is_with_the_fast_estimator(tmp_path, monkeypatch):
    class Stopping(ExactScorer):
        left = PIECES

        def __call__(self, inputs, targets, *, progress=None):
            if Stopping.left == 0:
                raise Stopped
            Stopping.left -= 1
            return super().__call__(inputs, targets, progress=progress)

    monkeypatch.setattr(averaging, "ExactScorer", Stopping)
    path, expected = tmp_path / "partial", call()
    Stopping.left = 3
    with pytest.raises(Stopped):
        call(path)
    Stopping.left = PIECES - 3
    assert same(call(path), expected)
    assert Stopping.left == 0


def test_before_the_first_piece_there_is_no_file(tmp_path):
    interrupted(tmp_path / "partial", 0)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_written_now_and_then(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(module, "WRITE_INTERVAL_S", 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    file = EstimateCheckpoint(tmp_path / "partial", fingerprint="")
    for _ in range(25):
        now[0] += 1
        if file.is_due:
            file.write({"a": torch.zeros(1)})
            written.append(now[0])
    assert written == [10, 20]


def test_a_place_where_no_file_can_be_ends_nothing_either(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    now = [0.0]
    monkeypatch.setattr(module, "WRITE_INTERVAL_S", 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.append(now[-1] + 8) or now[-1])
    found = call(tmp_path / "file" / "partial")
    assert 1 <= caplog.text.count("could not be written") < PIECES  # not again at once
    assert same(found, call())


def test_a_full_disk_does_not_end_the_measurement(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = call()
    monkeypatch.setattr(module, "write_atomically", full)
    assert same(call(tmp_path / "partial"), expected)
    assert "could not be written, so the estimate cannot be resumed" in caplog.text


def test_progress_resumes_too(tmp_path):
    path = tmp_path / "partial"
    seen, work = [], COUNT * CHANNELS
    call(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (work, work)
    assert seen == sorted(seen)
    interrupted(path, 3)
    again = []
    call(path, progress=lambda done, total: again.append((done, total)))
    assert again[2] == (24 * CHANNELS, work)  # three pieces that are done already
    assert again[-1] == (work, work)


def changed_weights():
    net = conv_net(outputs=4)
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] += 1e-3
    return net


def other_data(change):
    x, y = patterns(COUNT)
    if change == "image":
        x[3, 0, 0, 0] += 1e-3
    elif change == "label":
        y[3] = (y[3] + 1) % 4
    elif change == "order":
        order = torch.arange(COUNT)
        order[[3, 4]] = order[[4, 3]]
        x, y = x[order], y[order]
    return x, y


def halved(logits, targets):
    return 0.5 * F.cross_entropy(logits, targets)


CHANGES = {
    "weights": lambda: {"net": changed_weights()},
    "probe": lambda: {"probe": some_probe(8)},
    "taps": lambda: {"taps": ("conv3", "conv1")},
    "seed": lambda: {"seed": 5},
    "samples": lambda: {"samples": 40},
    "loss": lambda: {"loss": halved},
    "precision": lambda: {"precision": "bfloat16"},
    "image": lambda: {"data": other_data("image")},
    "label": lambda: {"data": other_data("label")},
    "order": lambda: {"data": other_data("order")},
    "fewer": lambda: {"data": tuple(part[:20] for part in patterns(COUNT))},
    "batches": lambda: {"size": 12},
    "uneven batches": lambda: {"size": 10},
    "larger batches": lambda: {"size": 45},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_estimate_starts_from_scratch_and_says_so(tmp_path, caplog, change):
    path = tmp_path / "partial"
    changes = CHANGES[change]()
    expected = call(**changes)
    count = len(Watched.scored)
    interrupted(path, 3)
    with caplog.at_level(logging.WARNING):
        found = call(path, **changes)
    if change == "larger batches":  # pieces of 8 all the same
        assert len(Watched.scored) == count - 3
        assert "from scratch" not in caplog.text
    else:
        assert len(Watched.scored) == count
        assert "starting from scratch" in caplog.text
    assert same(found, expected)
    assert not path.exists()


def test_equal_weights_in_another_object_and_other_forms_of_attention_go_on(tmp_path):
    path = tmp_path / "partial"
    interrupted(path, 3)
    found = call(
        path,
        net=copy.deepcopy(conv_net(outputs=4)),
        temperature=1.0,
        score_clip=2.0,
        clamp_negative_scores=True,
    )
    assert len(Watched.scored) == PIECES - 3
    assert same(found, call(temperature=1.0, score_clip=2.0, clamp_negative_scores=True))


def test_a_tolerance_is_met_where_it_was(tmp_path):
    path, x = tmp_path / "partial", patterns(300)
    expected = call(data=x, tolerance=0.5)
    assert 48 <= expected.samples < 300
    pieces = len(Watched.scored)
    for after in (pieces - 1, 2, pieces - 2):
        interrupted(path, after, data=x, tolerance=0.5)
        assert same(call(path, data=x, tolerance=0.5), expected)
        assert not path.exists()


@pytest.mark.slow
def test_a_tolerance_is_asked_for_after_whole_batches_alone(tmp_path):
    """Also where the attention has converged, by chance, where the call was interrupted."""
    x, y = patterns(200)
    size = 32  # four pieces

    def uncertainty(samples):
        return max(call(data=(x[:samples], y[:samples]), size=size).uncertainty.values())

    errors = [math.inf, *(uncertainty(8 * pieces) for pieces in range(1, 25))]
    whole = [pieces for pieces in range(12, 25) if pieces % 4 == 0]
    after = next(
        pieces
        for pieces in range(13, 24)
        if pieces % 4
        and errors[pieces] < min(errors[earlier] for earlier in whole if earlier < pieces)
    )
    options = {"data": (x, y), "size": size, "tolerance": errors[after]}
    expected = call(**options)
    assert expected.samples != 8 * after
    path = tmp_path / "partial"
    interrupted(path, after, **options)
    assert same(call(path, **options), expected)


def damages(path):
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["delta-transfer"])
    tensors = load_file(path)

    def with_about(about):
        save_file(tensors, path, metadata={"delta-transfer": about})
        return path.read_bytes()

    yield b""
    yield b"nothing"
    yield whole[:-5]
    yield with_about("no JSON")
    yield with_about("[]")
    yield with_about(json.dumps(about | {"format": "another"}))
    yield with_about(json.dumps({k: v for k, v in about.items() if k != "data_hash"}))
    yield with_about(json.dumps(about | {"data_hash": "0"}))
    tensors.pop("scores/conv3/mean")
    yield with_about(json.dumps(about))


def test_a_damaged_file_starts_from_scratch_and_says_so(tmp_path, caplog):
    path, expected = tmp_path / "partial", call()
    interrupted(path, 3)
    for damage in list(damages(path)):
        path.write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert same(call(path), expected)
        assert len(Watched.scored) == PIECES
        assert "starting from scratch" in caplog.text


def test_other_estimators_keep_nothing_and_say_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        call(tmp_path / "partial", estimator="gradient")
    assert "checkpoint_path is ignored" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.bool, torch.int64], ids=str)
def test_the_digest_is_of_all_bytes_shapes_and_kinds(tmp_path, dtype):
    def digest(inputs, targets):
        file = EstimateCheckpoint(tmp_path / "partial", fingerprint="")
        file.hash_batch(Batch(inputs=inputs, targets=targets, indices=torch.arange(len(targets))))
        return file.data_hash

    x, y = torch.zeros(2, 3).to(dtype), torch.zeros(2)
    other = x.clone()
    other[1, 2] = 1
    found = [digest(x, y), digest(other, y), digest(x.view(3, 2), y), digest(x, y.long())]
    found.append(digest(x.float(), y))
    found.append(digest(x, y.int()))  # the same bytes
    assert len(set(found)) == 6
    assert digest(x.clone(), y.clone()) == found[0]
