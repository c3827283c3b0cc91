"""What several processes cannot do together is refused, where it is done at all."""

import dataclasses

import pytest
import torch

from delta_transfer.errors import ConfigError
from delta_transfer.runs import validation
from tests.run_folders import tiny

ALONE = [
    {"gradient_accumulation_steps": 2},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"lr": "find"},
    {"batch_norm": "train"},
]


@pytest.mark.parametrize("options", ALONE, ids=lambda options: next(iter(options)))
def test_what_only_training_looks_at_is_in_nobody_s_way_without_it(
    images, tmp_path, monkeypatch, options
):
    monkeypatch.setattr(validation, "world_size", lambda: 2)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    trained = tiny(images, tmp_path, method="l2", **options)
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"`{name}={value}`"):
        validation.adapt_to_processes(trained)
    probed = tiny(images, tmp_path, method="probe", **options)
    assert validation.adapt_to_processes(probed) == probed


def test_parts_of_a_step_mean_nothing_without_steps(images, tmp_path, caplog):
    validation.check_run_config(
        tiny(images, tmp_path, method="probe", gradient_accumulation_steps=2)
    )
    assert "`gradient_accumulation_steps` is ignored: method probe does not use it" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "rifle"}, "method rifle changes weights outside of the optimiser"),
        ({"method": "spd"}, "method spd changes weights outside of the optimiser"),
        ({"method": "stochnorm"}, "method stochnorm changes weights outside of the optimiser"),
        ({"method": "lwf"}, "method lwf changes weights outside of the optimiser"),
        ({"method": "co_tuning"}, "method co_tuning changes weights outside of the optimiser"),
        ({"ema": 0.9}, "`ema=0.9` needs whole weights"),
        ({"precision": "16", "device": "auto"}, "`precision=16` is float16 here"),
        ({"precision": "auto", "device": "auto"}, "`precision=auto` is float16 here"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_they_are_sharded(
    images, tmp_path, monkeypatch, options, says
):
    monkeypatch.setattr(validation, "world_size", lambda: 2)
    monkeypatch.setattr(validation, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    config = tiny(images, tmp_path, strategy="fsdp", **{"method": "l2"} | options)
    with pytest.raises(ConfigError, match=says):
        validation.check_run_config(config)
    validation.check_run_config(dataclasses.replace(config, strategy="ddp"))


def test_weights_of_one_process_are_not_sharded(images, tmp_path, caplog):
    with pytest.raises(ConfigError, match="`strategy=fsdp` needs several processes"):
        validation.check_run_config(tiny(images, tmp_path, method="l2", strategy="fsdp"))
    validation.check_run_config(tiny(images, tmp_path, method="probe", strategy="fsdp"))
    assert "`strategy` is ignored: method probe does not use it" in caplog.text
