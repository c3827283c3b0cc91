import pytest
import torch

from delta_transfer.methods import BSS, L2, L2SP, LDIFS, CoTuning, Delta, LwF, Penalty, Step
from tests.networks import conv_net, moved

MAKE = {
    "l2": lambda strength: L2("fc", strength=strength),
    "l2sp": lambda strength: L2SP(strength=strength),
    "delta": lambda strength: Delta(taps=["conv1"], strength=strength),
    "ldifs": lambda strength: LDIFS(["conv1"], strength=strength),
    "bss": lambda strength: BSS("fc", strength=strength),
    "lwf": lambda strength: LwF(classifier(), head="fc", strength=strength),
    "co_tuning": lambda strength: CoTuning(
        classifier(), torch.full((2, 3), 1 / 3), head="fc", strength=strength
    ),
    "official": lambda strength: Delta.official(taps=["conv1"], strength=strength),
}


def classifier() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def step() -> Step:
    source = conv_net()
    features = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    return Step(
        target=moved(source),
        source=source,
        target_features={"conv1": features},
        source_features={"conv1": features + 1},
        targets=torch.tensor([0, 1]),
        head_inputs={"fc": features.mean(dim=1)},
        source_head_inputs={"fc": features.amax(dim=1)},
    )


def make(name: str, strength: float) -> Penalty:
    penalty = MAKE[name](strength)
    if isinstance(penalty, Delta):
        penalty.calibrate({"conv1": torch.tensor(2.0)})
    return penalty


def test_penalty_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Penalty("name", 1.0)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_no_strength_is_an_error(name, strength):
    with pytest.raises(ValueError, match="strength must be a number >= 0"):
        MAKE[name](strength)


@pytest.mark.parametrize("name", MAKE)
def test_a_term_is_a_positive_scalar_that_grows_with_its_strength(name):
    term = make(name, 0.3)(step())
    assert term.shape == ()
    assert term.item() > 0
    assert make(name, 0.6)(step()).item() == pytest.approx(2 * term.item(), rel=1e-6)
    assert make(name, 0.0)(step()).item() == 0
