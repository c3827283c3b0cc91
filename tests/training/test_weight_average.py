import csv

import lightning
import pytest
import torch
import torch.nn.functional as F

from tests.networks import conv_net
from tests.training.test_fit import Samples, plan, run


class Remember(lightning.Callback):
    """The weights after each step."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.states.append({n: t.clone() for n, t in self.network.state_dict().items()})


def slow_average(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """From the first step's weights on, in float64."""
    found = {name: tensor.double() for name, tensor in states[0].items()}
    for count, state in enumerate(states[1:], start=1):
        now = min(decay, (1 + count) / (10 + count))
        found = {name: now * a + (1 - now) * state[name].double() for name, a in found.items()}
    return found


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_what_is_validated_and_kept_is_the_moving_average(tmp_path, decay):
    network = conv_net()
    remember = Remember(network)
    run(network, plan(tmp_path, epochs=3), lr=0.05, ema=decay, callbacks=[remember])
    assert len(remember.states) == 9
    last = remember.states[-1]
    for name, expected in slow_average(remember.states, decay).items():
        assert torch.allclose(network.state_dict()[name].double(), expected, atol=1e-6)
    assert not torch.allclose(network.conv1.weight, last["conv1.weight"], atol=1e-5)
    assert all(parameter.requires_grad for parameter in network.parameters())
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    data = Samples()
    for epoch, loss in enumerate(losses):
        averaged = conv_net()
        if epoch:
            averaged.load_state_dict(slow_average(remember.states[: 3 * epoch], decay))
        with torch.no_grad():
            expected = F.cross_entropy(averaged(data.inputs), torch.tensor(data.labels))
        assert loss == pytest.approx(expected.item(), rel=1e-4)
