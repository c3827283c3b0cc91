"""Ctrl-C and SIGTERM end a fit after its step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A fit was asked to stop, and has saved where it is."""


class StopRequest:
    """Whether somebody has asked for a stop."""

    def __init__(self) -> None:
        self.asked = False
        self.heard: list[signal.Signals] = []

    def listen(self) -> None:
        """Takes the signals; once more, if another program has taken them meanwhile."""
        for number in self.heard:
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Takes note of a signal.

        Raises:
            KeyboardInterrupt: at the second one.
        """
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("stopping after this step, and saving; once more to stop at once")


_open: list[StopRequest] = []


def stop_fits() -> bool:
    """Asks the fits of this process for a stop, from any thread; whether there is one."""
    found = list(_open)
    for request in found:
        request.asked = True
    return bool(found)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Inside, SIGINT, SIGTERM and `stop_fits` only ask for a stop."""
    request = StopRequest()
    _open.append(request)
    try:
        with _hearing(request):
            yield request
    finally:
        _open.remove(request)


@contextmanager
def _hearing(request: StopRequest) -> Iterator[None]:
    """Inside, signals go to the request."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handlers
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A program that was started deaf to a signal, as shells do with & and nohup, stays so.
    request.heard = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    request.listen()
    try:
        yield
    finally:
        for number in request.heard:
            signal.signal(number, before[number])
