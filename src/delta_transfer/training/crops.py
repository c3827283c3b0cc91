"""Several crops of each picture at once."""

from torch import Tensor, nn


class CropAverage(nn.Module):
    """A network that is shown several crops of each picture and averages its logits.

    Args:
        network: takes pictures `[B, 3, H, W]` and gives logits `[B, K]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Tensor) -> Tensor:
        """The mean logits `[B, K]` of crops `[B, V, 3, H, W]`."""
        logits: Tensor = self.network(crops.flatten(0, 1))
        return logits.view(*crops.shape[:2], -1).mean(dim=1)
