"""Readable messages for errors, such as a full disk or too little memory."""

import errno
import re
from collections.abc import Iterator

from delta_transfer.errors import UserError


def message(error: UserError) -> str:
    """Return an error's message, without the traceback that a DataLoader worker puts before it.

    The traceback ends with the error's class, which a message with more context need not have.
    """
    kind = type(error)
    own = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]
    return re.split(r"(?m)^delta_transfer(?:\.\w+)+: ", own)[-1].strip()


def explain(error: BaseException) -> str | None:
    """Explain an error that comes from the machine, not from the code or the input.

    Those are a full disk, files without permission, too little memory, and crashed data loader
    workers.

    Args:
        error: as raised; the errors that caused it are inspected as well.

    Returns:
        A message that names the file, if one is known; None for any other error.
    """
    found = (_explain_file(link) or _explain_machine(link) for link in _chain(error))
    return next((text for text in found if text is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _explain_file(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        # torch.save names neither the file nor the reason.
        torn = isinstance(error, RuntimeError) and any(
            part in str(error) for part in _WRITE_FAILURES
        )
        return (
            f"a checkpoint could not be written, as on a full disk: {_FREE_SPACE_HINT}"
            if torn
            else None
        )
    file = f"'{error.filename}'" if error.filename is not None else "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{file} could not be written ({error.strerror}): {_FREE_SPACE_HINT}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no access to {file} ({error.strerror}): change its permissions or those of its "
            "folder, or write to another folder with `out`"
        )
    return None


def _explain_machine(error: BaseException) -> str | None:
    text = str(error) if isinstance(error, RuntimeError) else ""
    if any(part in text for part in _WORKER_FAILURES):
        return (
            "a data loader worker died, probably out of (shared) memory: load without workers, "
            "`num_workers=0`"
        )
    # By its name, so that torch need not be imported.
    full = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if full or isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY):
        own = isinstance(error, MemoryError) or _OUT_OF_MEMORY[0] in text
        where = "this machine" if own else "the GPU"
        return f"{where} has too little memory: lower `batch_size` or `image_size`"
    return None


_FREE_SPACE_HINT = "free some space, or write to another folder with `out`"
_WRITE_FAILURES = ("PytorchStreamWriter failed writing", "unexpected pos")
_WORKER_FAILURES = ("DataLoader worker (pid", "</torch_", "Too many open files. Communication")
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
