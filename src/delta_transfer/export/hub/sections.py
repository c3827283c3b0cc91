"""The words of a model card: how the model is used, what it learnt from and how, and its limits."""

from collections.abc import Iterator

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.export.hub.facts import CardFacts
from delta_transfer.export.hub.markdown import code, plain, table
from delta_transfer.export.hub.results import chance, miscalibration
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.report.formatting import duration, mebibytes, percent, pluralize

MOST_NAMES = 100  # classes that are named

_TIMM = """\
```python
import timm
import torch
from PIL import Image

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
labels = model.pretrained_cfg["label_names"]

image = Image.open("image.jpg").convert("RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(dim=1)[0]
for probability, index in zip(*probabilities.topk(min(3, len(labels)))):
    print(f"{{labels[index]}} {{probability:.3f}}")
```"""

_OURS = """\
```sh
pip install {package}
hf download {repo} --local-dir {name}
{commands}
```"""


def summary(facts: CardFacts) -> str:
    """What the model is, in a few sentences."""
    result, measure = facts.result, facts.result.metric
    what = f"{pluralize(len(facts.classes), 'class')}"
    if not isinstance(facts.task_type, Multiclass):
        what = pluralize(len(facts.classes), facts.task_type.target_kind.removesuffix("s"))
    said = (
        f"{_network(facts)}, fine-tuned by delta-transfer (method "
        f"{code(result.method)}) on {pluralize(result.num_train_samples, facts.noun)} of "
        f"**{plain(facts.data)}** for {what}."
    )
    tested = facts.split == "test"
    own = result.metric_value("test" if tested else "val")
    probe = result.metric_value("linear_probe_test" if tested else "linear_probe_val")
    return (
        f"{said} {facts.split.capitalize()} {measure.display_name} {measure.format(own)}; linear "
        "probe "
        f"{measure.format(probe)}."
    )


def use(facts: CardFacts) -> str:
    """The section on how the model is used."""
    parts = ["## Use"]
    if facts.timm and isinstance(facts.task_type, Multiclass):
        parts += ["With timm alone:", _TIMM.format(repo=facts.repo)]
        if facts.config.paper_protocol:
            parts.append(
                "The test of this run resized both sides of an image and averaged the logits of "
                "ten crops, which this leaves out."
            )
    graphs = isinstance(facts.input, GraphSpec)
    ours = _OURS.format(
        package='"delta-transfer[graph]"' if graphs else "delta-transfer",
        repo=facts.repo,
        name=facts.name,
        commands="\n".join(_commands(facts)),
    )
    outputs = f"{code('preprocessing.json')} says how inputs are made and what the outputs mean."
    return "\n\n".join([*parts, "With delta-transfer:", ours, outputs])


def _commands(facts: CardFacts) -> Iterator[str]:
    """What delta-transfer does with it, a line each."""
    if not isinstance(facts.input, GraphSpec):
        yield f"delta-transfer predict {facts.name} new_images/"
        yield f"delta-transfer evaluate {facts.name} labelled_images/"
        if facts.timm:
            yield f"delta-transfer train other_images --model hf-hub:{facts.repo}"
    elif facts.input.node_features == "atoms":
        yield f"delta-transfer predict {facts.name} 'CC(=O)Oc1ccccc1C(O)=O' more.smi"
        yield f"delta-transfer evaluate {facts.name} labelled.csv"
    else:
        yield f"delta-transfer evaluate {facts.name} {facts.data}"


def data(facts: CardFacts) -> str:
    """The section on the data."""
    rows = [["data", plain(facts.data)]]
    names = ", ".join(map(plain, facts.classes[:MOST_NAMES]))
    more = len(facts.classes) - MOST_NAMES
    named = f"{names} and {more} more (`config.json` has all)" if more > 0 else names
    rows.append([facts.task_type.target_kind, f"{len(facts.classes)}: {named}"])
    if facts.counts is not None:
        training, validation, test = (f"{number:,}" for number in facts.counts)
        rows += [
            [f"training {facts.noun}s", training],
            [f"validation {facts.noun}s", validation],
            [f"test {facts.noun}s", test if facts.counts[2] else "none"],
        ]
    learnt = pluralize(facts.result.num_train_samples, facts.noun)
    refitted = ", validation among them" if facts.result.refitted else ""
    rows.append(["the final model learnt from", f"{learnt}{refitted}"])
    if facts.result.samples_per_class is not None:
        rows.append(["drawn at random", f"{facts.result.samples_per_class} of each class"])
    if facts.noun == "molecule":
        rows.append(["split", code(facts.config.split)])
    shown = table(["", ""], rows)
    return f"## Data\n\n{shown}\n\nThe {facts.noun}s themselves are not in this repository."


def method(facts: CardFacts) -> str:
    """The section on the method."""
    result, config = facts.result, facts.config
    own = METHODS.get(result.method)
    told = f"[{own.name}]({own.paper}): {own.summary}" if own else code(result.method)
    weights = ", from weights of its own" if config.weights else ""
    rows = [["network", f"{_network(facts)}{weights}"], ["method", told]]
    rows += [["preset", code(config.preset)]]
    if result.strength_search is not None:
        first, second = (f"{one:g}" for one in result.strength_search.strengths)
        shares = ", ".join(
            f"{100 * share:g}%" for share in result.strength_search.mixing_coefficients
        )
        rows.append(
            [
                "strength",
                f"trained twice, with {first} and with {second}; the weights are the average of "
                f"the start and of both ({shares})",
            ]
        )
    elif result.strength is not None:
        rows.append(["strength", f"{result.strength:g}"])
    if own is not None and own.needs_attention:
        rows.append(["channel attention", code(config.attention)])
    if result.taps:
        rows.append(["feature maps", ", ".join(map(code, result.taps))])
    if own is None or own.trains_network:
        rows.append(["recipe", _recipe(facts)])
        by = "by validation loss" if facts.chooses_epoch else "the last"
        rows.append(["epoch kept", f"{result.best_epoch} of {result.epochs}, {by}"])
    if isinstance(facts.input, InputSpec):
        rows.append(["size of images", f"{facts.input.size} x {facts.input.size} pixels"])
    rows.append(["seed", f"{result.seed}"])
    rows.append(
        ["took", f"{duration(result.wall_time_s)}, {mebibytes(result.peak_memory_mib)} of memory"]
    )
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    rows.append(["versions", plain(versions)])
    return f"## Method\n\n{table(['', ''], rows)}\n\nAll options are in `config.yaml`."


def _network(facts: CardFacts) -> str:
    return "A network of its own" if facts.base is None else code(facts.base)


def _recipe(facts: CardFacts) -> str:
    config = facts.config
    said = [
        config.optimizer,
        f"learning rate {config.lr}",
        f"schedule {config.schedule}",
        f"{config.batch_size} {facts.noun}s a step",
        f"batch norm {config.batch_norm}",
    ]
    if isinstance(facts.input, InputSpec):
        said.append(f"augmentation {config.augment}")
    return ", ".join(said)


def limits(facts: CardFacts) -> str:
    """The section on limits."""
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in _limits(facts))])


def _limits(facts: CardFacts) -> Iterator[str]:
    result, noun = facts.result, facts.noun
    learnt = pluralize(result.num_train_samples, noun)
    each = ""
    if isinstance(facts.task_type, Multiclass):
        each = f", {result.num_train_samples / len(facts.classes):.0f} a class on average"
    yield (
        f"It learnt from {learnt}{each}. What differs from these, such as {_strange(noun)}, it may "
        "get wrong more often than the figures say."
    )
    yield from _about_figures(facts)
    error = miscalibration(facts)
    if error is not None:
        yield (
            "Its probabilities are not calibrated: on the "
            f"{facts.split} split they are off by {100 * error:.1f} points on average (expected "
            "calibration error, 15 bins), and on other data perhaps by more."
        )
    if isinstance(facts.task_type, Multiclass):
        yield (
            f"Whatever a {noun} is of, it is given one of these {len(facts.classes)} classes; "
            "there is no answer for none of them."
        )
    if noun == "molecule" and facts.config.split == "random":
        yield (
            "The split was random: molecules with the same ring system may be in several splits. "
            "Where they are split by scaffold, figures are lower as a rule."
        )
    yield "The figures come from the run itself; nobody else has checked them."
    if noun == "image":
        yield (
            "They say nothing of how answers differ between people or places, which the images "
            "may show unequally."
        )
    if facts.license is None:
        yield "No licence is stated. Those of the pretrained weights and of the data may bind too."
    else:
        yield "The licences of the pretrained weights and of the data may bind beside its own."


def _about_figures(facts: CardFacts) -> Iterator[str]:
    result, noun = facts.result, facts.noun
    ends = chance(facts)
    within = (
        f" ({percent(ends[0])} to {percent(ends[1])} by the {noun}s' number alone)" if ends else ""
    )
    yield (
        f"The figures are of one run: seed {result.seed}, one {facts.split} split{within}. Another "
        f"seed, or other {noun}s, would give others."
    )
    by = ", by which the epoch was chosen" if facts.chooses_epoch else ""
    if facts.split == "validation":
        yield f"There was no test split. The figures are of the validation {noun}s{by}."
        return
    yield (
        f"delta-transfer chose nothing on the test split. Whether people looked at its {noun}s or "
        "figures and trained again, this card cannot know; if so, the test figures flatter."
    )
    if facts.chooses_epoch:
        refitted = " They are of networks that had not seen these; the final one has."
        unseen = refitted if result.refitted else ""
        yield f"Validation figures flatter: the epoch was chosen by them.{unseen}"


def _strange(noun: str) -> str:
    return {
        "image": "other cameras, places, light or times",
        "molecule": "molecules with other ring systems or elements",
    }.get(noun, "graphs of other sizes or from other sources")
