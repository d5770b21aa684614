"""A clean end, whatever asks for it: jobs that were submitted are cancelled before this process goes."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from geochip.errors import Terminated

# SIGTERM: scancel of the driver's own job, or its walltime; SIGHUP: the terminal is closed.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end this process as Ctrl-C does: through all that has to be undone.

    A signal that somebody ignores (nohup) or handles is left as it is, and so are all outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(signal.Signals(number))

    taken = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within, signals that would end this process wait: what is done here is short, and has to be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
