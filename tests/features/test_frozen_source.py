import pytest
import torch

from delta_transfer.features.frozen_source import GIB, FeatureCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_a_key_is_that_of_the_values_whatever_the_batch(dtype):
    inputs = (255 * torch.rand(6, 3, 5, 5)).to(dtype)
    cache = FeatureCache(1.0)
    keys = cache.keys(inputs)
    assert len(set(keys)) == 6
    assert FeatureCache(1.0).keys(inputs[[4, 1]]) == [keys[4], keys[1]]
    assert cache.keys(inputs.to(memory_format=torch.channels_last)) == keys


def test_a_bit_makes_another_key():
    """Also where 32-bit words change by multiples of large powers of two."""
    row = torch.randn(1, 7)
    rows = row.repeat(7 * 32, 1)
    words = rows.view(torch.int32)
    for i in range(7 * 32):
        words[i, i // 32] ^= torch.tensor(1 << i % 32).to(torch.int32)
    keys = FeatureCache(1.0).keys(torch.cat([row, rows]))
    assert len(set(keys)) == 7 * 32 + 1


def test_swapped_values_are_another_sample():
    a, b = FeatureCache(1.0).keys(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert a != b


def test_what_is_kept_is_given_back_in_any_order():
    cache = FeatureCache(1.0)
    keys = cache.keys(torch.arange(4.0).reshape(4, 1))
    maps, rows = torch.randn(4, 5, 2), torch.randn(4, 3)
    cache.put(keys[:2], [maps[:2], rows[:2]])
    assert [cache.has(key) for key in keys] == [True, True, False, False]
    cache.put(keys, [maps, rows])
    found = cache.get([keys[3], keys[0], keys[3]])
    assert torch.equal(found[0], maps[[3, 0, 3]])
    assert torch.equal(found[1], rows[[3, 0, 3]])


def test_no_more_is_kept_than_the_limit_allows():
    cache = FeatureCache(2.5 * 40 / GIB)  # a sample has ten numbers of four bytes
    keys = cache.keys(torch.arange(4.0).reshape(4, 1))
    cache.put(keys, [torch.randn(4, 10)])
    assert [cache.has(key) for key in keys] == [True, True, False, False]


def test_the_memory_of_a_batch_is_not_held_by_a_sample_of_it():
    cache = FeatureCache(1.0)
    batch = torch.randn(100, 10)
    cache.put(cache.keys(torch.ones(1, 1)), [batch[:1]])
    assert cache.get(cache.keys(torch.ones(1, 1)))[0].untyped_storage().nbytes() == 40
