"""A save that is waited for, for tests that look at what it leaves on disk."""

from collections.abc import Mapping
from typing import Any

from pipeline.checkpoint.store import CheckpointStore
from pipeline.distributed.fragments import Stateful


def save_now(store: CheckpointStore, progress: Mapping[str, Any], parts: Mapping[str, Stateful]) -> int:
    """Save, commit, and remove what is old; returns the number of the generation. Collective."""
    store.save(progress, parts)
    done = store.commit()
    store.settle()
    assert done is not None and done.progress == progress
    return done.number
