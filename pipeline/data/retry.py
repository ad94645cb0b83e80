"""Reads from an object store, tried again with growing pauses. Called by the index and the source, in their threads."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.config import UserError

NUM_ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each failure: eight attempts ride out about 20 seconds of trouble."""

T = TypeVar("T")


def patiently(read: Callable[[], T]) -> T:
    """The result of `read`; what is not there or not allowed fails at once, anything else after `NUM_ATTEMPTS`."""
    for attempt in range(NUM_ATTEMPTS - 1):
        try:
            return read()
        except (UserError, FileNotFoundError, PermissionError):
            raise
        except Exception:  # each client library has its own kinds; the last attempt lets its own go on to the caller
            # Jitter: the ranks must not come back all at once.
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))
    return read()
