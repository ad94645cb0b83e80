"""Some of the samples of a dataset, as one bit each: which is the i-th of them, in a fixed number of look-ups.

A table of how many bits are set before each run of 512 makes `ids` a binary search and one run of bits, so a subset of
a billion samples costs 125 MB of bits and 16 MB of counts, and no list of numbers. Called by the plan, for selections
and for buckets.
"""

import numpy as np

RUN_BYTES = 64
"""Bytes of bits that one entry of the table stands for."""

_POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def pack(chosen: np.ndarray) -> np.ndarray:
    """bool [N] -> uint8 [ceil(N / 8)]: sample i is bit i % 8 of byte i // 8."""
    return np.packbits(chosen, bitorder="little")


class Members:
    """The samples whose bit is set; `bits` as `pack` makes them, whose last byte ends in zeros."""

    def __init__(self, bits: np.ndarray) -> None:
        num_runs = -(-len(bits) // RUN_BYTES)
        self._runs = np.zeros((num_runs, RUN_BYTES), dtype=np.uint8)
        self._runs.ravel()[: len(bits)] = bits
        counts = _POPCOUNT[self._runs].sum(axis=1, dtype=np.int64)
        self._before = np.concatenate([[0], np.cumsum(counts)])  # int64 [num_runs + 1]

    def __len__(self) -> int:
        return int(self._before[-1])

    def ids(self, places: np.ndarray) -> np.ndarray:
        """The sample ids, int64 [n], of places in [0, len), int64 [n]: ascending with the places."""
        runs = np.searchsorted(self._before, places, side="right") - 1
        unpacked = np.unpackbits(self._runs[runs], axis=1, bitorder="little")  # [n, 512]
        rank = np.cumsum(unpacked, axis=1, dtype=np.uint16)
        wanted = places - self._before[runs] + 1
        inside = (rank < wanted[:, None]).sum(axis=1)  # set bits come one by one: the first that reaches it
        return runs * (8 * RUN_BYTES) + inside
