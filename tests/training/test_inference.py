import torch

from delta_transfer.metrics.task_types import Multiclass, MultilabelBinary
from delta_transfer.training.inference import CropAverage, iterate_predictions, predict_dataloader
from tests.networks import conv_net


def test_probabilities_are_those_of_all_batches_in_eval_mode():
    network = conv_net()
    inputs, labels = torch.randn(7, 3, 8, 8), torch.arange(7)
    with torch.no_grad():
        logits = network(inputs)
    expected = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    network.train()
    network.norm1.eval()
    batches = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]
    probabilities = predict_dataloader(network, batches, Multiclass())
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert not probabilities.requires_grad
    yes = predict_dataloader(network, batches, MultilabelBinary())
    assert torch.allclose(yes, 1 / (1 + (-logits).exp()), atol=1e-6)
    # The network is given back as it was.
    assert network.training
    assert network.norm2.training
    assert not network.norm1.training


def test_batches_come_one_by_one_with_what_stands_beside_them():
    network, asked = conv_net().train(), []

    def batches():
        for number in (2, 0, 3):
            asked.append(number)
            yield torch.ones(number, 3, 8, 8), f"batch of {number}"

    found = iterate_predictions(network, batches(), Multiclass())
    first, beside = next(found)
    assert (first.shape[0], beside, asked) == (2, "batch of 2", [2])
    assert torch.is_grad_enabled()  # the caller's own, in between
    assert not network.training
    assert [beside for _, beside in found] == ["batch of 3"]  # the empty one is left out
    assert network.training


def test_a_network_is_given_back_when_the_rest_is_not_wanted():
    network = conv_net().train()
    found = iterate_predictions(network, [(torch.ones(1, 3, 8, 8), 0)] * 2, Multiclass())
    next(found)
    found.close()
    assert network.training


def test_logits_are_the_mean_over_the_crops():
    network = conv_net().double()
    crops = torch.randn(4, 10, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        expected = torch.stack([network(crops[:, i]) for i in range(10)]).mean(dim=0)
        found = CropAverage(network)(crops)
    assert torch.allclose(found, expected)
