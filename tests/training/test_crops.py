import torch

from delta_transfer.training.inference import CropAverage
from tests.networks import conv_net


def test_logits_are_the_mean_over_the_crops():
    network = conv_net().double()
    crops = torch.randn(4, 10, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        expected = torch.stack([network(crops[:, i]) for i in range(10)]).mean(dim=0)
        found = CropAverage(network)(crops)
    assert torch.allclose(found, expected)
