"""Read uploads into memory, up to a limit."""

import dataclasses
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

MEBIBYTE = 2**20
MAX_FILES = 50
_DRAINED = 1024 * MEBIBYTE  # read and discarded, so that the browser receives the response


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """An uploaded file.

    Args:
        name: from the browser.
        content: of the file.
    """

    name: str
    content: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """A submitted form.

    Args:
        files: to explain.
        fields: the other fields by name.
    """

    files: list[Upload]
    fields: dict[str, str]


async def read_form(request: Request, *, limit: int) -> Form:
    """Read an upload of at most `limit` bytes.

    Raises:
        HTTPException: if it is larger (413), or not a valid form (400).
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(400, "send images as a form with files (multipart/form-data)")
    try:
        parser = MultiPartParser(
            request.headers, _limited(request, limit), max_files=MAX_FILES, max_fields=10
        )
        parser.spool_max_size = limit + 1
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the upload cannot be read: {error.message}") from error
    # If no file was chosen, browsers send one without a name.
    chosen = [
        value
        for _, value in form.multi_items()
        if isinstance(value, UploadFile) and (value.filename or value.size)
    ]
    files = [
        Upload(name=value.filename or "an image", content=await value.read()) for value in chosen
    ]
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    await form.close()
    return Form(files=files, fields=fields)


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    count = 0
    declared = request.headers.get("content-length", "")
    too_long = declared.isdecimal() and int(declared) > limit
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit + _DRAINED:
            break
        if count <= limit and not too_long:
            yield chunk
    if count > limit:
        raise HTTPException(
            413,
            f"the upload exceeds {limit // MEBIBYTE} MiB: choose fewer or smaller images, or start "
            "the app with a larger --max-mb",
        )
