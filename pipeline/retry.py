"""Reads and writes of an object store, tried again with growing pauses. Called by the loader and by the storage."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.config import UserError

NUM_ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.2
"""Doubled after each failure: eight attempts ride out about 20 seconds of trouble."""

HOPELESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""Names of errors of botocore's, which is not imported here, that no patience helps."""

T = TypeVar("T")


def patiently(work: Callable[[], T]) -> T:
    """The result of `work`; what is not there or not allowed fails at once, anything else after `NUM_ATTEMPTS`."""
    for attempt in range(NUM_ATTEMPTS - 1):
        try:
            return work()
        except (UserError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each client library has its own; the last attempt lets its own go on to the caller
            if type(error).__name__ in HOPELESS:
                raise
            # Jitter: the ranks must not come back all at once.
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.0))
    return work()
