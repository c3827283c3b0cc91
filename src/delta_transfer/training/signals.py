"""Stop a fit after its current step at Ctrl-C or SIGTERM."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class FitInterrupt(Exception):
    """A fit has stopped on request, after saving its state."""


class StopRequest:
    """A request to stop a fit."""

    def __init__(self) -> None:
        self.requested = False
        self.handled_signals: list[signal.Signals] = []

    def listen(self) -> None:
        """Handle the signals; again if other code has replaced the handlers."""
        for number in self.handled_signals:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: at the second signal.
        """
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("stopping after this step and saving; press Ctrl-C again to stop at once")


_active_requests: list[StopRequest] = []


def stop_fits() -> bool:
    """Request the fits of this process to stop, from any thread; return False without any."""
    found = list(_active_requests)
    for request in found:
        request.requested = True
    return bool(found)


@contextmanager
def handle_stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and `stop_fits` into a request to stop."""
    request = StopRequest()
    _active_requests.append(request)
    try:
        with _signal_handlers(request):
            yield request
    finally:
        _active_requests.remove(request)


@contextmanager
def _signal_handlers(request: StopRequest) -> Iterator[None]:
    """Install the request's signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Signals ignored from the start, as by nohup or a shell's &, stay ignored.
    request.handled_signals = [
        number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)
    ]
    request.listen()
    try:
        yield
    finally:
        for number in request.handled_signals:
            signal.signal(number, before[number])
