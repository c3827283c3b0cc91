"""The folder of a run as it goes to the hub: network, options, figures and the model card."""

from collections.abc import Mapping
from pathlib import Path

from delta_transfer.backbones.saved import CONFIG, WEIGHTS
from delta_transfer.export.export import PREPROCESSING, export_run
from delta_transfer.export.hub.card import model_card
from delta_transfer.export.hub.facts import collect_facts
from delta_transfer.export.hub.upload import CARD
from delta_transfer.inference.predictor import CONFIG_FILE, Predictor
from delta_transfer.utils.files import write_atomically

FIGURES = "result.json"
FILES = (CARD, CONFIG, CONFIG_FILE, WEIGHTS, PREPROCESSING, FIGURES)
"""All that goes to the hub, the card first. None of it names a file of the run's samples."""

_HEAD = """\
# The options of the run. Files of its machine go by what they are, and data without a name of
# its own by one in brackets: train DATA -c config.yaml takes other data by them.
"""


def write_folder(
    predictor: Predictor,
    folder: Path,
    *,
    repo: str,
    license: str | None = None,
    data_name: str | None = None,
) -> Mapping[str, int]:
    """Writes what goes to the hub into a folder that is empty or not there.

    The network is read again as a stranger would, and compared with the run's.

    Args:
        predictor: the run.
        folder: where to.
        repo: where it will be, ORG/NAME.
        license: of the model, None where nobody said.
        data_name: what the data is called; its own name if None.

    Returns:
        The files, and the bytes of each.

    Raises:
        UserError: if the run is not finished, a file of it is damaged, or its network is another
            when it is read again.
    """
    facts = collect_facts(predictor, repo=repo, license=license, data_name=data_name)
    export_run(predictor, format="safetensors", out=folder)
    write_atomically(folder / CONFIG_FILE, _HEAD + facts.config.to_yaml())
    write_atomically(folder / FIGURES, facts.result.to_json())
    write_atomically(folder / CARD, model_card(facts))
    return {name: (folder / name).stat().st_size for name in FILES}
