import pytest
import torch

from delta_transfer.training import accuracy, predict_probabilities
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
    probabilities, found = predict_probabilities(network, batches)
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert torch.equal(found, labels)
    assert not probabilities.requires_grad
    # The network is given back as it was.
    assert network.training
    assert network.norm2.training
    assert not network.norm1.training


def test_accuracy_is_the_fraction_of_right_answers():
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    assert accuracy(probabilities, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
