"""The order of training samples as a pure function: no arrays over the dataset, no state but a few numbers.

The endless sample axis counts every sample that training ever asks for: global position g is place g % N of epoch
g // N. Within an epoch the samples are cut into blocks of `block_samples` neighbours, a keyed bijection shuffles the
blocks, another one shuffles inside each block, and the shuffled axis is cut into `num_lanes` equal lanes that advance
together, so a batch mixes as many blocks as there are lanes while each block is read once. Rank, world size, workers
and batch size never enter. Called by the loader; the fetcher uses the same arithmetic to look ahead.

The bijection is a Feistel network (Luby and Rackoff, 1988) on the next even power of two with cycle walking (Black and
Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.randomness import Draws, Purpose

NUM_ROUNDS = 8
"""Four rounds make a pseudorandom permutation of large domains; the blocks' small ones want more."""

_BLOCK_KEYS, _INNER_KEYS, _SUBSTITUTE_KEYS, MIXTURE_KEYS, BUCKET_KEYS = range(5)
"""Which bijection a set of round keys is for."""


def permute(values: np.ndarray, size: int, keys: np.ndarray, tweaks: np.ndarray | int = 0) -> np.ndarray:
    """A keyed bijection of [0, size): uint64 [n] -> uint64 [n]; each value of `tweaks` selects another bijection."""
    return _walk(values, size, keys, tweaks, inverse=False)


def unpermute(values: np.ndarray, size: int, keys: np.ndarray, tweaks: np.ndarray | int = 0) -> np.ndarray:
    """The inverse of `permute` with the same size, keys and tweaks."""
    return _walk(values, size, keys, tweaks, inverse=True)


@dataclass(frozen=True)
class SampleOrder:
    """Which sample stands at each position of the endless axis; equal fields give the equal order everywhere."""

    num_samples: int
    seed: int
    num_lanes: int
    block_samples: int

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch; only the last of the dataset may be shorter than `block_samples`."""
        return -(-self.num_samples // self.block_samples)

    def samples_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, sample ids), both int64 [n], of global positions int64 [n] on the endless axis."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        sample_ids = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            sample_ids[chosen] = self._samples_of_epoch(int(epoch), places[chosen])
        return epochs, sample_ids

    def substitute(self, epoch: int, sample_id: int, attempt: int) -> int:
        """The sample that stands in for an unreadable one: a keyed draw of (seed, epoch, sample, attempt)."""
        keys = round_keys(self.seed, epoch, _SUBSTITUTE_KEYS)
        words = np.array([sample_id, attempt], dtype=np.uint64) + keys[:2]
        return int(mix(mix(words[:1]) + words[1:])[0] % np.uint64(self.num_samples))

    def _samples_of_epoch(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Sample ids at places [0, N) of one epoch: lane -> shuffled axis -> block -> sample."""
        block_keys, inner_keys = round_keys(self.seed, epoch, _BLOCK_KEYS), round_keys(self.seed, epoch, _INNER_KEYS)
        slots, inner = self._slots(self._axis(places), block_keys)
        blocks = permute(slots.astype(np.uint64), self.num_blocks, block_keys).astype(np.int64)
        for size, chosen in self._by_size(blocks):
            inner[chosen] = permute(inner[chosen].astype(np.uint64), size, inner_keys, blocks[chosen].astype(np.uint64))
        return blocks * self.block_samples + inner

    def _axis(self, places: np.ndarray) -> np.ndarray:
        """Position on the shuffled axis: place i is step i // C of lane i % C; the first N % C lanes are one longer."""
        steps, lanes = np.divmod(places, self.num_lanes)
        shortest, longer = divmod(self.num_samples, self.num_lanes)
        return lanes * shortest + np.minimum(lanes, longer) + steps

    def _slots(self, axis: np.ndarray, block_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(slot in the shuffled row of blocks, place inside that block); the one short block shifts those behind it."""
        tail = self.num_samples % self.block_samples
        if tail:
            last = np.array([self.num_blocks - 1], dtype=np.uint64)
            short_slot = int(unpermute(last, self.num_blocks, block_keys)[0])
            behind = axis >= short_slot * self.block_samples + tail
            axis = axis + np.where(behind, self.block_samples - tail, 0)
        slots, inner = np.divmod(axis, self.block_samples)
        return slots, inner

    def _by_size(self, blocks: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(block size, which entries) for the full blocks and, if it is among them, the short one."""
        tail = self.num_samples % self.block_samples
        short = (blocks == self.num_blocks - 1) if tail else np.zeros(len(blocks), dtype=bool)
        return [(size, chosen) for size, chosen in ((self.block_samples, ~short), (tail, short)) if chosen.any()]


def _walk(values: np.ndarray, size: int, keys: np.ndarray, tweaks: np.ndarray | int, inverse: bool) -> np.ndarray:
    """Encrypt until the value falls inside [0, size); the power-of-four domain is at most four times too large."""
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    offsets = mix(np.broadcast_to(np.asarray(tweaks, dtype=np.uint64), values.shape))
    values = _feistel(values, half, keys, offsets, inverse)
    while (outside := values >= np.uint64(size)).any():
        values[outside] = _feistel(values[outside], half, keys, offsets[outside], inverse)
    return values


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray, offsets: np.ndarray, inverse: bool) -> np.ndarray:
    """One pass of the network over words of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    if inverse:
        for key in keys[::-1]:
            left, right = right ^ (mix(left + key + offsets) & mask), left
    else:
        for key in keys:
            left, right = right, left ^ (mix(right + key + offsets) & mask)
    return left << half | right


def mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): uint64 [n] -> uint64 [n]."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=16)
def round_keys(seed: int, epoch: int, which: int) -> np.ndarray:
    """uint64 [NUM_ROUNDS] round keys of one bijection of one epoch."""
    return Draws(seed).bits(Purpose.ORDER, [epoch], [which], NUM_ROUNDS)[0]
