"""Upload a folder as one commit to a repository of the Hugging Face Hub."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from delta_transfer.backbones.base import short_error_message
from delta_transfer.backbones.downloads import DOWNLOAD_ERRORS
from delta_transfer.errors import ConfigError, EnvironmentError, UserError, first_few

logger = logging.getLogger(__name__)

CARD = "README.md"  # the hub's name for it
_MESSAGE = "Upload by delta-transfer"
_HUB_FILES = {".gitattributes"}  # which the hub creates with a repository
# Errors of the hub's client without a connection or permission; it raises the last three around
# them, or for an unexpected response.
_FAILED: tuple[type[BaseException], ...] = (*DOWNLOAD_ERRORS, RuntimeError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UploadResult:
    """A commit on the hub."""

    commit: str  # its id
    private: bool  # the repository is private


def check_repo(repo: str) -> None:
    """Raise ConfigError if this is not a repository's name, ORG/NAME."""
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f"REPO {repo!r} is not a repository name: use ORG/NAME, of letters, digits and single "
            "- _ . between them, 96 characters at most"
        )


def check_token() -> None:
    """Raise EnvironmentError without a token for the hub."""
    if get_token() is None:
        raise EnvironmentError(
            "push needs a Hugging Face token with write access: run hf auth login or set HF_TOKEN; "
            "`dry_run` needs none"
        )


def address(repo: str) -> str:
    """Return the URL of a repository."""
    return f"{HfApi().endpoint}/{repo}"


def upload(folder: Path, files: Sequence[str], *, repo: str, private: bool = False) -> UploadResult:
    """Upload files by one commit to a repository, which is created if it does not exist.

    The token is that of `hf auth login` or of HF_TOKEN.

    Args:
        folder: the folder of the files.
        files: their names.
        repo: ORG/NAME.
        private: the repository must be private.

    Raises:
        UserError: if the hub cannot be reached or refuses, or the repository exists and is public
            though it must be private.
    """
    try:
        return _upload(HfApi(token=get_token()), folder, files, repo, private=private)
    except UserError:
        raise
    except _FAILED as error:
        raise _explain(error, repo) from error


def _upload(
    api: HfApi, folder: Path, files: Sequence[str], repo: str, *, private: bool
) -> UploadResult:
    _check_card(folder)
    api.create_repo(repo, private=private or None, exist_ok=True)
    found = api.model_info(repo)
    if private and not found.private:
        raise ConfigError(
            f"`private`: {address(repo)} exists and is public; nothing is uploaded. Make it "
            "private in its settings, use another REPO, or leave the option out"
        )
    existing = {sibling.rfilename for sibling in found.siblings or ()} - _HUB_FILES
    if existing:
        replaced, kept = sorted(existing & set(files)), sorted(existing - set(files))
        parts = [f"replaces {first_few(replaced, 8)}"] if replaced else []
        parts += [f"leaves {first_few(kept)} unchanged"] if kept else []
        logger.warning("%s exists: the new commit %s", address(repo), " and ".join(parts))
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Not upload_folder, which may split the files over several commits.
        commit = api.create_commit(repo, operations, commit_message=_MESSAGE)
    for warning in caught:
        if issubclass(warning.category, UserWarning):  # of the hub, about the card
            logger.warning("%s", " ".join(str(warning.message).split()))
    return UploadResult(commit=commit.oid, private=bool(found.private))


def _check_card(folder: Path) -> None:
    """Raise ConfigError if the hub refuses the model card, before a repository is created."""
    try:
        ModelCard.load(folder / CARD).validate()
    except ValueError as error:
        try:
            reason = "; ".join(found["message"] for found in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            reason = short_error_message(error)
        raise ConfigError(
            f"the hub refuses the model card ({reason}): use a `license` from "
            "https://huggingface.co/docs/hub/repositories-licenses, or none"
        ) from error


def _explain(error: BaseException, repo: str) -> UserError:
    """Return the error for a failed upload."""
    links = [error]  # the error and its causes, of which the last says most
    while cause := links[-1].__cause__ or links[-1].__context__:
        links.append(cause)
    responses = (getattr(link, "response", None) for link in links)
    status = next((found.status_code for found in responses if found is not None), None)
    whole = f"An upload is one commit: {address(repo)} has all of it or nothing"
    if status is None:
        return EnvironmentError(
            f"the upload to {address(repo)} failed ({short_error_message(links[-1])}): check the "
            "connection and HF_ENDPOINT, then run the command again; if uploads by Xet fail, set "
            f"HF_HUB_DISABLE_XET=1. {whole}"
        )
    if status == 401:
        return EnvironmentError(
            f"the hub rejects the token for {repo} (401): it may have expired or be read-only; run "
            "hf auth login again, or set another HF_TOKEN"
        )
    if status in (403, 404):
        return EnvironmentError(
            f"the token may not write to {repo} ({status}): use a REPO of your own or of an "
            "organisation you may write to, ORG/NAME, and a token with write access"
        )
    return EnvironmentError(
        f"the hub answers {status} ({short_error_message(error)}): try again later. {whole}"
    )
