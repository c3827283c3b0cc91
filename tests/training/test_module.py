import math
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from delta_transfer.methods import L2, L2SP, LwF
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.module import FineTuneModule
from delta_transfer.training.optimizers import OptimizerConfig, cycle_starts, schedule_factor
from tests.networks import conv_net, moved


def expected_factor(step: int, total: int, schedule: str) -> float:
    """By the words: 15% of the steps up to the peak, then down to zero, by a step or not at all."""
    rising = max(1, round(0.15 * total))
    if step + 1 <= rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if step / total < 0.67 else 0.1
    gone = (step - rising) / (total - rising)
    return math.cos(gone * math.pi / 2) ** 2


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 40, 100])
def test_the_schedule_is_a_warm_up_and_what_its_name_says(schedule, total):
    for step in range(total):
        found = schedule_factor(step, total, schedule=schedule, warmup_ratio=0.15)
        assert found == pytest.approx(expected_factor(step, total, schedule), abs=1e-12)
        assert 0 < found <= 1


def test_the_cosine_ends_at_zero():
    assert schedule_factor(40, 40, schedule="cosine", warmup_ratio=0.15) == pytest.approx(0)


def fine_tuning(**options: object) -> FineTuneModule:
    target, source = moved(conv_net()), conv_net()
    penalties = [L2SP(strength=0.5), L2("fc", strength=0.25)]
    values = {
        "optimizer": "adamw",
        "lr": 0.1,
        "head_lr": 0.2,
        "weight_decay": 0.3,
        "schedule": "constant",
        "warmup_ratio": 0.15,
    }
    module = FineTuneModule(
        target,
        Regularizer(target, source, penalties),
        loss=F.cross_entropy,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(**{**values, **options}),
        exit_stack=ExitStack(),
    )
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)
    return module


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_head_and_backbone_have_their_own_rates(optimizer):
    module = fine_tuning(optimizer=optimizer)
    made = module.configure_optimizers()["optimizer"]
    rate_of = {
        id(parameter): group["initial_lr"]
        for group in made.param_groups
        for parameter in group["params"]
    }
    rates = {name: rate_of[id(p)] for name, p in module.network.named_parameters()}
    assert len(rate_of) == len(rates)  # nothing but the network is trained
    assert {name for name, rate in rates.items() if rate == 0.2} == {"fc.weight", "fc.bias"}
    assert set(rates.values()) == {0.1, 0.2}


def test_parameters_are_in_the_order_of_the_network():
    """Norms of gradients are sums in this order, and equal runs must give equal bytes."""
    module = fine_tuning()
    groups = module.configure_optimizers()["optimizer"].param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert found == [id(parameter) for parameter in module.network.parameters()]


def test_optimisers_are_those_of_the_options():
    adamw = fine_tuning(optimizer="adamw").configure_optimizers()["optimizer"]
    sgd = fine_tuning(optimizer="sgd").configure_optimizers()["optimizer"]
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.9}
    for optimizer in (adamw, sgd):
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


def test_the_schedule_goes_by_the_step_over_all_steps():
    found = fine_tuning(schedule="cosine").configure_optimizers()
    optimizer, plan = found["optimizer"], found["lr_scheduler"]
    assert plan["interval"] == "step"
    for step in range(20):
        factor = expected_factor(step, 20, "cosine")
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * factor, 0.2 * factor])
        optimizer.step()
        plan["scheduler"].step()


@pytest.mark.parametrize(("total", "cycles"), [(20, 3), (9, 3), (7, 2), (5, 1), (2, 3), (1, 3)])
def test_cycles_are_equal_parts_of_the_training(total, cycles):
    starts = cycle_starts(total, cycles)
    assert starts[0] == 0
    assert len(starts) == min(total, cycles)
    lengths = [end - start for start, end in zip(starts, [*starts[1:], total], strict=True)]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 0


def test_the_heads_schedule_starts_again_with_each_cycle_and_the_backbones_does_not():
    found = fine_tuning(schedule="cosine", num_head_cycles=3).configure_optimizers()
    optimizer, plan = found["optimizer"], found["lr_scheduler"]
    for step in range(20):
        start, length = next((s, n) for s, n in ((13, 7), (6, 7), (0, 6)) if step >= s)
        expected = [
            0.1 * expected_factor(step, 20, "cosine"),
            0.2 * expected_factor(step - start, length, "cosine"),
        ]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        optimizer.step()
        plan["scheduler"].step()


def test_what_surrounds_the_steps_is_entered_with_the_optimiser_and_left_with_the_fit():
    seen = []

    @contextmanager
    def around(optimizer):
        seen.append(optimizer)
        yield
        seen.append("left")

    module = fine_tuning(optimizer_context=around)
    made = module.configure_optimizers()["optimizer"]
    assert seen == [made]
    module._exit_stack.close()
    assert seen == [made, "left"]


def test_the_parameters_of_penalties_are_trained_as_the_backbone_is():
    module = fine_tuning()
    penalty = LwF(torch.nn.Linear(6, 9), head="fc")
    module.regularizer = Regularizer(module.network, conv_net(), [penalty])
    body, head = module.configure_optimizers()["optimizer"].param_groups
    assert body["initial_lr"] == 0.1
    own = {id(parameter) for parameter in penalty.classifier.parameters()}
    assert own <= {id(parameter) for parameter in body["params"]}
    frozen = {id(parameter) for parameter in penalty.frozen.parameters()}
    assert not frozen & {id(p) for group in (body, head) for p in group["params"]}


def test_a_step_is_the_task_loss_and_the_terms(monkeypatch):
    module = fine_tuning()
    module.trainer = SimpleNamespace(optimizers=[module.configure_optimizers()["optimizer"]])
    logged = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(FineTuneModule, "current_epoch", 4)
    inputs, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    monkeypatch.setattr(FineTuneModule, "global_step", 13)
    with module.regularizer:
        total = module.training_step((inputs, targets), 0)
    shown = dict(logged)
    module._count_losses(*module.trainer.optimizers)
    module.on_train_epoch_end()
    assert all(logged[name] == pytest.approx(value) for name, value in shown.items())
    network, source = module.network, conv_net()
    start = dict(source.named_parameters())
    task = F.cross_entropy(network.eval()(inputs), targets)
    l2sp = sum((p - start[name]).square().sum() for name, p in network.named_parameters())
    head = network.fc.weight.square().sum() + network.fc.bias.square().sum()
    expected = {"task": task, "l2sp": 0.5 * 0.5 * l2sp, "l2": 0.25 * 0.5 * head}
    for name, value in expected.items():
        assert logged[f"train_{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert total.item() == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert total.requires_grad
    assert logged["train_loss"] == pytest.approx(total.item())
    assert (logged["epoch"], logged["step"]) == (5, 12)


class _Reads(TorchDispatchMode):
    """Counts reads of tensors by Python, for which a GPU would have to finish what is queued."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_in_micro_batches_reads_no_tensor(monkeypatch):
    module = fine_tuning()
    module._accumulation.num_micro_batches = 2
    optimizer = module.configure_optimizers()["optimizer"]
    strategy = SimpleNamespace(backward=lambda loss, _: loss.backward())
    module.trainer = SimpleNamespace(optimizers=[optimizer], strategy=strategy)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: None)
    with module.regularizer, _Reads() as reads:
        module.training_step((torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)), 0)
    assert reads.count == 0
    names, terms, samples = module._step_losses
    assert (names, terms.shape, samples) == (["loss", "task", "l2sp", "l2"], (2, 4), 4)


def test_an_epochs_figures_are_means_over_its_samples(monkeypatch):
    """Also where batches differ in size, and where it was broken off between them."""
    module, logged, parts = fine_tuning(), {}, []
    monkeypatch.setattr(FineTuneModule, "current_epoch", 0)
    monkeypatch.setattr(FineTuneModule, "global_step", 2)
    for size in (4, 1):
        module.trainer = SimpleNamespace(optimizers=[module.configure_optimizers()["optimizer"]])
        monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
        monkeypatch.setattr(module, "log", lambda name, value, **_: None)
        with module.regularizer:
            batch = torch.randn(size, 3, 8, 8), torch.zeros(size, dtype=torch.long)
            parts.append((size, float(module.training_step(batch, 0).detach())))
            module._count_losses(*module.trainer.optimizers)
        checkpoint: dict[str, object] = {}
        module.on_save_checkpoint(checkpoint)
        again = fine_tuning()
        again.on_load_checkpoint(checkpoint)
        module = again
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **_: None)
    module.on_train_epoch_end()
    assert logged["train_loss"] == pytest.approx(sum(n * value for n, value in parts) / 5)
