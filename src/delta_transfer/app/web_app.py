"""The web application: the page, its style and script, and explanations of images."""

import io
from collections.abc import Sequence
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from delta_transfer.app.explainer import Explainer, Explanation
from delta_transfer.app.pages import Refusal, asset, render_explanation, render_page
from delta_transfer.app.uploads import Form, Upload, read_form
from delta_transfer.data.images.decode import ImageError, decode_image

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class WebApp:
    """Handles requests, one image at a time.

    Args:
        explainer: the run.
        limit: most bytes of an upload.
    """

    def __init__(self, explainer: Explainer, *, limit: int) -> None:
        self.explainer = explainer
        self.limit = limit
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def get_page(self, request: Request) -> Response:
        """Return the page without explanations."""
        return self._page([])

    async def post_page(self, request: Request) -> Response:
        """Return the page with explanations of a form's images, for browsers without script."""
        try:
            form = await self._form(request)
            parts = [await self._explain_in_thread(upload, form) for upload in form.files]
        except HTTPException as error:
            return self._page([], message=error.detail, status=error.status_code)
        return self._page(parts, message="" if parts else "Choose an image first.")

    async def post_explanation(self, request: Request) -> Response:
        """Return explanations alone, for the page's script."""
        form = await self._form(request)
        parts = [
            render_explanation(self.explainer, await self._explain_in_thread(file, form))
            for file in form.files
        ]
        return HTMLResponse("\n".join(parts))

    async def _form(self, request: Request) -> Form:
        _check_origin(request)
        try:
            form = await read_form(request, limit=self.limit)
        except ClientDisconnect as error:
            raise HTTPException(400, "the upload was interrupted") from error
        _class_index(form, self.explainer.predictor.classes)
        return form

    async def _explain_in_thread(self, upload: Upload, form: Form) -> Explanation | Refusal:
        return await anyio.to_thread.run_sync(
            self._explain, upload, form, limiter=self._one_at_a_time
        )

    def _explain(self, upload: Upload, form: Form) -> Explanation | Refusal:
        try:
            image = decode_image(io.BytesIO(upload.content), name=upload.name)
        except ImageError as error:
            reason = f"is not a readable image: {error.reason}."
            return Refusal(name=upload.name, reason=reason)
        index = _class_index(form, self.explainer.predictor.classes)
        return self.explainer.explain(image, name=upload.name, class_index=index)

    def _page(
        self, parts: Sequence[Explanation | Refusal], *, message: str = "", status: int = 200
    ) -> Response:
        page = render_page(self.explainer, parts, limit=self.limit, message=message)
        return HTMLResponse(page, status_code=status)


def create_app(explainer: Explainer, *, hosts: Sequence[str], limit: int) -> Starlette:
    """Create the application.

    Args:
        explainer: the run.
        hosts: host names and addresses that requests may use; others are rejected, against DNS
            rebinding.
        limit: most bytes of an upload.
    """
    app = WebApp(explainer, limit=limit)
    return Starlette(
        routes=[
            Route("/", app.get_page, methods=["GET"]),
            Route("/", app.post_page, methods=["POST"]),
            Route("/explain", app.post_explanation, methods=["POST"]),
            Route("/style.css", _style, methods=["GET"]),
            Route("/page.js", _script, methods=["GET"]),
        ],
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
    )


async def _style(request: Request) -> Response:
    return Response(asset("style.css"), media_type="text/css")


async def _script(request: Request) -> Response:
    return Response(asset("page.js"), media_type="text/javascript")


def _check_origin(request: Request) -> None:
    """Reject requests from pages of other sites.

    Raises:
        HTTPException: if the origin is another site.
    """
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "images are only accepted from this page")


def _class_index(form: Form, classes: Sequence[str]) -> int | None:
    """Return the class of the requested map; None for the most probable one.

    Raises:
        HTTPException: if there is no such class.
    """
    text = form.fields.get("class", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) < len(classes)):
        raise HTTPException(400, f"there is no class number {text[:20]}")
    return int(text)


class _WithHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_with_headers)
