"""A folder becomes a commit in a repository of the Hugging Face Hub."""

import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from delta_transfer.backbones.base import short_error_message
from delta_transfer.backbones.downloads import DOWNLOAD_ERRORS
from delta_transfer.errors import UserError, first_few

logger = logging.getLogger(__name__)

CARD = "README.md"  # as the hub has it
MESSAGE = "Upload by delta-transfer"
_OF_THE_HUB = {".gitattributes"}  # which it makes with a repository
# What the hub's library raises: what is not reached or refused, and, around it or of what came back
# in place of an answer, these.
_FAILED: tuple[type[BaseException], ...] = (*DOWNLOAD_ERRORS, RuntimeError, ValueError, KeyError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A commit.

    Args:
        address: of the repository.
        commit: its id.
        private: whether only some see it.
    """

    address: str
    commit: str
    private: bool


def check_repo(repo: str) -> None:
    """Raises UserError where this is no name of a repository, ORG/NAME."""
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"REPO {repo!r} is no name of a repository: give ORG/NAME, of letters, digits and "
            "single - _ . between them, 96 at most"
        )


def check_token() -> None:
    """Raises UserError where nobody has logged in."""
    if get_token() is None:
        raise UserError(
            "push needs a token of the Hugging Face Hub that may write: log in with hf auth login, "
            "or set HF_TOKEN; --dry-run needs none"
        )


def address(repo: str) -> str:
    """Where a repository is found."""
    return f"{HfApi().endpoint}/{repo}"


def upload(folder: Path, files: Sequence[str], *, repo: str, private: bool = False) -> Uploaded:
    """Puts files into a repository by one commit; it is made if it is not there.

    The token is that of `hf auth login` or of HF_TOKEN.

    Args:
        folder: where the files lie.
        files: their names.
        repo: ORG/NAME.
        private: whether the repository must be private.

    Raises:
        UserError: if the hub is not reached or refuses, or the repository is there and is public
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
) -> Uploaded:
    _check_card(folder)
    api.create_repo(repo, private=private or None, exist_ok=True)
    found = api.model_info(repo)
    where = address(repo)
    if private and not found.private:
        raise UserError(
            f"--private: {where} is there already and is public; nothing is uploaded. Make it "
            "private in its settings, give another REPO, or leave the option out"
        )
    there = {sibling.rfilename for sibling in found.siblings or ()} - _OF_THE_HUB
    if there:
        _tell_of_files(where, there, files)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # Not upload_folder, which may make several commits of it.
        commit = api.create_commit(repo, operations, commit_message=MESSAGE)
    for warning in told:
        if issubclass(warning.category, UserWarning):  # of the hub, about the card
            logger.warning("%s", " ".join(str(warning.message).split()))
    return Uploaded(address=where, commit=commit.oid, private=bool(found.private))


def _check_card(folder: Path) -> None:
    """Raises UserError where the hub does not take a model card, before anything is made."""
    try:
        ModelCard.load(folder / CARD).validate()
    except ValueError as error:
        try:
            said = "; ".join(found["message"] for found in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            said = short_error_message(error)
        raise UserError(
            f"the hub refuses the model card ({said}): give a --license that it knows, as in "
            "https://huggingface.co/docs/hub/repositories-licenses, or none"
        ) from error


def _tell_of_files(where: str, there: set[str], files: Sequence[str]) -> None:
    replaced, kept = sorted(there & set(files)), sorted(there - set(files))
    parts = [f"replaces {first_few(replaced, 8)}"] if replaced else []
    parts += [f"leaves {first_few(kept)} as they are"] if kept else []
    logger.warning("%s is there already: one more commit %s", where, " and ".join(parts))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(error: BaseException, repo: str) -> UserError:
    """The error for an upload that did not happen."""
    links = list(_chain(error))
    responses = (getattr(link, "response", None) for link in links)
    codes = [response.status_code for response in responses if response is not None]
    where, said = address(repo), short_error_message(links[-1] if codes == [] else error)
    whole = f"The upload is one commit, of which {where} has all or nothing"
    if codes and codes[0] == 401:
        return UserError(
            f"the hub does not take the token for {repo} (401): it may have expired, or been made "
            "for reading; log in again with hf auth login, or set another HF_TOKEN"
        )
    if codes and codes[0] in (403, 404):
        return UserError(
            f"the token may not write to {repo} ({codes[0]}): give a REPO of your own or of an "
            "organisation that you may write in, ORG/NAME, and a token that may write"
        )
    if codes:
        return UserError(f"the hub answers {codes[0]} ({said}): try again later. {whole}")
    return UserError(
        f"the upload to {where} did not go through ({said}): check the connection and HF_ENDPOINT, "
        "and give the same command again; where uploads by Xet fail, set HF_HUB_DISABLE_XET=1. "
        f"{whole}"
    )
