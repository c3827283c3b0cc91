"""The folder of a run for the hub: network, options, results and the model card."""

from collections.abc import Mapping
from pathlib import Path

from delta_transfer.backbones.saved import CONFIG, WEIGHTS
from delta_transfer.export.export import PREPROCESSING, export_run
from delta_transfer.export.hub.card import model_card
from delta_transfer.export.hub.facts import collect_facts
from delta_transfer.export.hub.upload import CARD
from delta_transfer.inference.predictor import CONFIG_FILE, Predictor
from delta_transfer.utils.files import write_atomically

_RESULT = "result.json"
FILES = (CARD, CONFIG, CONFIG_FILE, WEIGHTS, PREPROCESSING, _RESULT)
"""All files that go to the hub, the card first. None of them names a sample of the run."""

_HEAD = """\
# The options of the run. Files are named without their paths, and data that is not a named data
# set is in brackets: to train with these options on other data, use train DATA -c config.yaml.
"""


def write_folder(
    predictor: Predictor,
    folder: Path,
    *,
    repo: str,
    license: str | None = None,
    data_name: str | None = None,
) -> Mapping[str, int]:
    """Write the files for the hub into a folder that is empty or does not exist.

    The written network is loaded again and compared with the run's.

    Args:
        predictor: the run.
        folder: the folder to write to.
        repo: the repository it is for, ORG/NAME.
        license: the model's licence; None if it is not stated.
        data_name: the name of the data on the card; its own name if None.

    Returns:
        The files with their sizes in bytes.

    Raises:
        UserError: if the run is not finished, a file of it is damaged, or its network differs
            when it is loaded again.
    """
    facts = collect_facts(predictor, repo=repo, license=license, data_name=data_name)
    export_run(predictor, format="safetensors", out=folder)
    write_atomically(folder / CONFIG_FILE, _HEAD + facts.config.to_yaml())
    write_atomically(folder / _RESULT, facts.result.to_json())
    write_atomically(folder / CARD, model_card(facts))
    return {name: (folder / name).stat().st_size for name in FILES}
