import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from delta_transfer.attention.estimators.batches import Batch, Batches
from delta_transfer.errors import UserError


def data(count=11):
    return torch.arange(count).float().unsqueeze(1), torch.arange(count) % 3


def loader(count=11, size=4):
    x, y = data(count)
    return list(zip(x.split(size), y.split(size), strict=True))


def joined(batches) -> Batch:
    parts = list(batches)
    return Batch(
        inputs=torch.cat([part.inputs for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
    )


def test_all_samples_come_in_order_with_their_places_time_and_again():
    batches = Batches(loader(), samples=None, seed=0)
    for _ in range(2):
        assert [len(batch) for batch in batches] == [4, 4, 3]
        found = joined(batches)
        assert torch.equal(found.inputs, data()[0])
        assert torch.equal(found.targets, data()[1])
        assert found.indices.tolist() == list(range(11))


def test_drawn_samples_know_their_places():
    batches = Batches(loader(), samples=5, seed=3)
    found = joined(batches)
    picked = torch.randperm(11, generator=torch.Generator().manual_seed(3))[:5].sort().values
    assert torch.equal(found.indices, picked)
    assert found.inputs.flatten().tolist() == picked.tolist()
    assert torch.equal(found.targets, picked % 3)
    assert all(len(batch) for batch in batches)
    other = joined(Batches(loader(size=3), samples=5, seed=3))
    assert torch.equal(other.indices, found.indices)


@pytest.mark.parametrize(
    ("size", "sizes"), [(None, [11]), (4, [4, 4, 3]), (1, [1] * 11), (20, [11])]
)
def test_pieces_are_the_batch_in_order(size, sizes):
    x, y = data()
    batch = Batch(inputs=x, targets=y, indices=torch.arange(5, 16))
    pieces = list(batch.chunks(size))
    assert [len(piece) for piece in pieces] == sizes
    found = joined(pieces)
    assert torch.equal(found.inputs, x)
    assert torch.equal(found.indices, batch.indices)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*data(), strict=True))


def test_how_many_there_will_be_is_told_where_it_is_known():
    x, y = data()
    assert Batches(loader(), samples=None, seed=0).count() == 11
    assert Batches(loader(), samples=5, seed=0).count() == 5
    assert Batches(loader(), samples=50, seed=0).count() == 11
    assert Batches(DataLoader(TensorDataset(x, y), 4), samples=None, seed=0).count() == 11
    assert Batches(DataLoader(Stream(), 4), samples=None, seed=0).count() is None
    assert Batches(iter(loader()), samples=None, seed=0).count() is None


@pytest.mark.parametrize("samples", [None, 5])
def test_no_data_are_an_error(samples):
    with pytest.raises(UserError, match="the loader is empty, or can be iterated only once"):
        list(Batches([], samples=samples, seed=0))
    used = iter(loader())
    list(used)
    with pytest.raises(UserError, match="only once"):
        list(Batches(used, samples=samples, seed=0))
