import pytest

from delta_transfer.config.commands import (
    AppOptions,
    AttentionOptions,
    BenchOptions,
    EvaluateOptions,
    PredictOptions,
    PretrainOptions,
    PushOptions,
    TapsOptions,
)
from delta_transfer.config.search import SearchOptions
from delta_transfer.errors import ConfigError

NEEDED = {
    EvaluateOptions: {"run": "run", "data": "data"},
    PredictOptions: {"run": "run", "paths": ("a",)},
    TapsOptions: {"model": "resnet18"},
    AppOptions: {"run": "run"},
    PushOptions: {"run": "run", "repo": "me/model"},
    PretrainOptions: {"data": "data"},
    BenchOptions: {"name": "dtd"},
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((kind, "batch_size", 0) for kind in (EvaluateOptions, PredictOptions, PretrainOptions)),
        *((kind, "num_workers", -1) for kind in (EvaluateOptions, PredictOptions, BenchOptions)),
        (PredictOptions, "top", 0),
        (TapsOptions, "image_size", 15),
        (AppOptions, "port", 65536),
        (AppOptions, "max_mb", 0),
        (AppOptions, "examples", -1),
        (PushOptions, "license", "Apache 2"),
        (PushOptions, "data_name", " "),
        (PretrainOptions, "mask_rate", 1.0),
        (PretrainOptions, "lr", 1.5),
        (PretrainOptions, "seed", -1),
        (BenchOptions, "jobs", 0),
        (AttentionOptions, "samples", 0),
        *(
            (AttentionOptions, name, value)
            for name in ("tolerance", "temperature")
            for value in (0.0, -1.0, float("inf"), float("nan"))
        ),
        (SearchOptions, "trials", 0),
        (SearchOptions, "minutes", float("nan")),
        (SearchOptions, "lr", "1e-2:1e-4"),
        (SearchOptions, "strength", "large"),
        (SearchOptions, "epochs", "5,5"),
    ],
)
def test_a_wrong_value_is_refused_by_name(kind, name, value):
    with pytest.raises(ConfigError, match=rf"`{name}[=`]"):
        kind(**NEEDED.get(kind, {}), **{name: value})


def test_bounds_are_allowed():
    EvaluateOptions(run="run", data="data", batch_size=1, num_workers=0)
    PredictOptions(run="run", paths=("a",), top=1, batch_size=1, num_workers=0)
    TapsOptions(model="resnet18", image_size=16)
    AppOptions(run="run", port=0, examples=0)
    AttentionOptions(samples=1, tolerance=1e-6, temperature=1e-6)


@pytest.mark.parametrize("options", [{}, {"name": "dtd", "list": True}])
def test_bench_needs_a_name_or_list(options):
    with pytest.raises(ConfigError, match=r"NAME.*`list`"):
        BenchOptions(**options)
