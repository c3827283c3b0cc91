"""The model card of a run: metadata for the hub, and a page for people from `card.md.j2`."""

import re

import timm
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.export.hub.facts import CardFacts
from delta_transfer.inference.evaluation import calibration_error
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.statistics import accuracy_interval
from delta_transfer.report.comparison.runs import rank_methods, summarize_methods
from delta_transfer.report.confusion import class_accuracies
from delta_transfer.report.run_files import Predictions
from delta_transfer.report.templates import render_page

_HUB_NAME = r"[\w.-]+/[\w.-]+"


def model_card(facts: CardFacts) -> str:
    """Return the README.md of a run on the hub."""
    values = {
        **vars(facts),
        "name": facts.name,
        "metadata": Markup(metadata(facts).to_yaml()),  # nosec B704  # YAML, not HTML
        "plain": plain,
        "code": code,
        "graphs": isinstance(facts.input_spec, GraphSpec),
        "metric": facts.result.metric,
        "scores": facts.scores,
        "method": METHODS.get(facts.result.method),
        "trains": facts.trains,
        "selects_weights": facts.trains and not facts.config.paper_protocol,
        "summaries": facts.comparison and rank_methods(summarize_methods(facts.comparison)),
        "max_rows": 50,  # of a table of classes or targets
        "max_names": 100,  # of classes or targets
        **(_uncertainty(facts.predictions) if facts.predictions else {}),
    }
    return str(ModelCard(render_page("card.md.j2", values, folder="export/hub")))


def _uncertainty(predictions: Predictions) -> dict[str, object]:
    """Return each class's accuracy, the 95% interval for this many samples, and the ECE."""
    correct = [row.is_correct for row in predictions.rows]
    low, high = accuracy_interval(sum(correct), len(correct))
    # A second class without probability: only that of the prediction counts.
    probabilities = torch.tensor([[row.probability, 0.0] for row in predictions.rows])
    return {
        "per_class": class_accuracies(predictions),
        "low": low,
        "high": high,
        "calibration_error": calibration_error(probabilities, 1 - torch.tensor(correct).int()),
    }


def metadata(facts: CardFacts) -> ModelCardData:
    """Return what the hub lists, searches and shows beside the card."""
    graphs = isinstance(facts.input_spec, GraphSpec)
    return ModelCardData(
        base_model=None if facts.base is None else base_model(facts.config),
        datasets=_hub_data(facts.data),
        eval_results=_eval_results(facts) or None,
        library_name="timm" if facts.timm else "delta-transfer",
        license=facts.license,
        metrics=[facts.result.metric.name],
        model_name=facts.name,
        pipeline_tag=_pipeline(facts),
        tags=[
            "delta-transfer",
            "transfer-learning",
            *([f"{facts.sample_type}s"] if graphs else []),
        ],
    )


def base_model(config: TrainConfig) -> str | None:
    """Return the pretrained network's name on the hub; None if it has none or it is unknown."""
    if config.weights is not None:
        return None
    if config.model.startswith("hf-hub:"):
        return config.model.removeprefix("hf-hub:").partition("@")[0]
    name = config.model.removeprefix("timm/")
    found = timm.is_model(name.partition(".")[0]) and timm.get_pretrained_cfg(name)
    hub: str | None = found.hf_hub_id if found else None
    return hub if hub and re.fullmatch(_HUB_NAME, hub) else None


def _pipeline(facts: CardFacts) -> str | None:
    if isinstance(facts.input_spec, GraphSpec):
        return "graph-ml"
    return "image-classification" if facts.result.metric is ACCURACY else None


def _hub_data(data: str) -> str | None:
    """Return the name on the hub of a data set that comes from there."""
    name = data.removeprefix("hf/").partition(":")[0]
    return name if data.startswith("hf/") and re.fullmatch(_HUB_NAME, name) else None


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """Return the metrics on the test split, or on validation where there is none."""
    result, data = facts.result, facts.data
    scores = {(str(result.metric.name), result.metric.display_name): facts.scores[0]}
    if result.metric_name == "mean_class_accuracy":
        scores[result.metric_name, "accuracy, mean over classes"] = result.test_mean_class_accuracy
    slug = re.sub(r"[^a-z0-9/_.-]+", "-", data.lower()).strip("-") or "own"
    return [
        EvalResult(
            task_type=_pipeline(facts) or "other",
            dataset_type=_hub_data(data) or slug,
            dataset_name=data,
            dataset_split=facts.split,
            metric_type=metric,
            metric_value=round(value, 4),
            metric_name=f"{facts.split} {words}",
        )
        for (metric, words), value in scores.items()
        if value is not None
    ]


def plain(text: str) -> Markup:
    r"""Return text as one line of Markdown in which nothing is markup.

    Example:
        >>> print(plain("a|b <script> *c* stop_sign\n_d_"))
        a\|b \<script\> \*c\* stop_sign \_d\_
    """
    text = re.sub(r"([\\`*\[\]<>|&#~])", r"\\\1", " ".join(text.split()))
    return Markup(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text))  # nosec B704  # just escaped


def code(text: str) -> Markup:
    """Return text as one line of code in Markdown, also in a table.

    Example:
        >>> print(code("blocks.1"), code("a|`b`"))
        `blocks.1` `a/'b'`
    """
    shown = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return Markup(f"`{shown or ' '}`")  # nosec B704  # nothing is markup inside of backticks
