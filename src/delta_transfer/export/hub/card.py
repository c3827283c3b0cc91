"""The model card of a run: metadata that the hub reads, and text for people."""

import re

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.export.hub import sections
from delta_transfer.export.hub.facts import CardFacts
from delta_transfer.export.hub.results import results
from delta_transfer.metrics.task_types import Multiclass

_HUB_NAME = r"[\w.-]+/[\w.-]+"


def model_card(facts: CardFacts) -> str:
    """The README.md of a run on the hub."""
    parts = [
        f"# {facts.name}",
        sections.summary(facts),
        sections.use(facts),
        sections.data(facts),
        sections.method(facts),
        results(facts),
        sections.limits(facts),
    ]
    text = "\n\n".join(parts)
    return str(ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{text}\n"))


def metadata(facts: CardFacts) -> ModelCardData:
    """What the hub lists, searches and shows beside the card."""
    graphs = isinstance(facts.input, GraphSpec)
    own = [facts.noun + "s"] if graphs else []
    return ModelCardData(
        base_model=None if facts.base is None else base_model(facts.config),
        datasets=_hub_data(facts.data),
        eval_results=_eval_results(facts) or None,
        library_name="timm" if facts.timm else "delta-transfer",
        license=facts.license,
        metrics=[facts.result.metric.name],
        model_name=facts.name,
        pipeline_tag=_pipeline(facts),
        tags=["delta-transfer", "transfer-learning", *own],
    )


def base_model(config: TrainConfig) -> str | None:
    """The name on the hub of the pretrained network; None if it is not there, or not known."""
    if config.weights is not None:
        return None
    if config.model.startswith("hf-hub:"):
        return config.model.removeprefix("hf-hub:").partition("@")[0]
    name = config.model.removeprefix("timm/")
    if not timm.is_model(name.partition(".")[0]):
        return None
    found = timm.get_pretrained_cfg(name)
    hub: str | None = None if found is None else found.hf_hub_id
    return hub if hub and re.fullmatch(_HUB_NAME, hub) else None


def _pipeline(facts: CardFacts) -> str | None:
    if isinstance(facts.input, GraphSpec):
        return "graph-ml"
    return "image-classification" if isinstance(facts.task_type, Multiclass) else None


def _hub_data(data: str) -> str | None:
    """The name on the hub of a data set that comes from there."""
    if not data.startswith("hf/"):
        return None
    name = data.removeprefix("hf/").partition(":")[0]
    return name if re.fullmatch(_HUB_NAME, name) else None


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """The figures on the test split, or on validation where there is none."""
    result, measure = facts.result, facts.result.metric
    value = result.metric_value("val" if facts.split == "validation" else "test")
    found = (
        [] if value is None else [_eval_result(facts, measure.name, value, measure.display_name)]
    )
    mean = result.test_mean_class_accuracy
    if result.metric_name == "mean_class_accuracy" and mean is not None:
        words = "accuracy, mean over classes"
        found.append(_eval_result(facts, "mean_class_accuracy", mean, words))
    return found


def _eval_result(facts: CardFacts, metric: str, value: float, words: str) -> EvalResult:
    data = facts.data
    slug = re.sub(r"[^a-z0-9/_.-]+", "-", data.lower()).strip("-") or "own"
    return EvalResult(
        task_type=_pipeline(facts) or "other",
        dataset_type=_hub_data(data) or slug,
        dataset_name=data,
        dataset_split=facts.split,
        metric_type=metric,
        metric_value=round(value, 4),
        metric_name=f"{facts.split} {words}",
    )
