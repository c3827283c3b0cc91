"""Ctrl-C and SIGTERM end a fit after its step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class FitInterrupt(Exception):
    """A fit was asked to stop, and has saved where it is."""


class StopRequest:
    """Whether somebody has asked for a stop."""

    def __init__(self) -> None:
        self.requested = False
        self.handled_signals: list[signal.Signals] = []

    def listen(self) -> None:
        """Takes the signals; once more, if another program has taken them meanwhile."""
        for number in self.handled_signals:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Takes note of a signal.

        Raises:
            KeyboardInterrupt: at the second one.
        """
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("stopping after this step, and saving; once more to stop at once")


_active_requests: list[StopRequest] = []


def stop_fits() -> bool:
    """Asks the fits of this process for a stop, from any thread; whether there is one."""
    found = list(_active_requests)
    for request in found:
        request.requested = True
    return bool(found)


@contextmanager
def handle_stop_signals() -> Iterator[StopRequest]:
    """Inside, SIGINT, SIGTERM and `stop_fits` only ask for a stop."""
    request = StopRequest()
    _active_requests.append(request)
    try:
        with _signal_handlers(request):
            yield request
    finally:
        _active_requests.remove(request)


@contextmanager
def _signal_handlers(request: StopRequest) -> Iterator[None]:
    """Inside, signals go to the request."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handlers
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A program that was started deaf to a signal, as shells do with & and nohup, stays so.
    request.handled_signals = [
        number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)
    ]
    request.listen()
    try:
        yield
    finally:
        for number in request.handled_signals:
            signal.signal(number, before[number])
