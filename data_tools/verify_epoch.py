"""Proof that a run trained on each sample exactly once an epoch, through all its kills, resumes and resizes.

The journal's ledger says what every step really served (`pipeline.data.served`). Here the same words are computed again
from the manifest, the seed and the list of unreadable samples, along the committed line of the run: steps that a resume
has taken back do not count. Called by `tessera-data verify-epoch`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.run_plan import RunPlan
from pipeline.config import UserError
from pipeline.data.plan import Plan
from pipeline.data.served import chained, key_words, sample_words, step_word
from pipeline.tracking.journal import Event, read_events

CHUNK_SAMPLES = 1 << 16
"""Positions whose order is computed in one go."""


Keys = Sequence[np.ndarray | None]
"""For each phase uint64 [samples], `key_words` of every sample by id; None where only ids are compared."""


@dataclass
class Verdict:
    """What a run served, and what is wrong about it."""

    num_samples: int = 0
    """Samples of all steps until the last checkpoint."""
    num_steps: int = 0
    num_attempts: int = 0
    """Starts of the run whose steps count."""
    ranks: list[int] = field(default_factory=list)
    """Numbers of ranks that it had, in their order."""
    num_substitutes: int = 0
    """Times that another sample stood in for an unreadable one."""
    epochs: list[tuple[int, int]] = field(default_factory=list)
    """(whole epochs, samples of each) of every dataset or bucket of every phase."""
    faults: list[str] = field(default_factory=list)
    """One line each; none is the proof."""


def verify_run(run: RunPlan, keys: Keys) -> Verdict:
    """Compare the ledger of a run with its plan.

    Raises:
        UserError: the journal holds no ledger.
    """
    verdict, chain = Verdict(), ""
    tallies = [Tally(phase.plan) for phase in run.phases]
    pages = committed_line(run.folder, run.samples_seen)
    for page in pages:
        first, words, batch_size = page.body["first"], page.body["words"], page.body["batch_size"]
        if first != verdict.num_samples:
            verdict.faults.append(_gap(verdict.num_samples, first))
        verdict.num_samples, verdict.num_steps = page.samples_seen, verdict.num_steps + len(words)
        if verdict.ranks[-1:] != [page.body["ranks"]]:
            verdict.ranks.append(page.body["ranks"])
        begins = first + batch_size * np.arange(len(words))
        for begin, found, expected in zip(
            begins.tolist(), words, _expected(verdict, run, begins, batch_size, keys, tallies), strict=True
        ):
            chain = chained(chain, found)
            if fault := _difference(found, expected, keys[0] is None):
                verdict.faults.append(f"samples {begin} to {begin + batch_size}: {fault}")
    verdict.num_attempts = len({page.attempt for page in pages})
    for tally in tallies:
        verdict.epochs += tally.whole()
        verdict.faults += tally.faults()
    if run.chain and run.chain != chain:
        verdict.faults.append(
            f"the newest checkpoint remembers the chain {run.chain[:12]}, the journal gives {chain[:12]}: one of them"
            " was altered, or belongs to another run"
        )
    return verdict


def committed_line(folder: Path, last: int) -> list[Event]:
    """The ledger's pages up to the checkpoint at `last` samples, in order, without those that a resume took back.

    The checkpoint itself says where it is: the journal hears of it a moment later, which a kill can take away.

    Raises:
        UserError: there are none.
    """
    pages = [event for event in read_events(folder) if event.kind == "served" and event.samples_seen <= last]
    if not pages:
        raise UserError(f"{folder}: its journal holds no ledger of served samples up to a checkpoint")
    return pages


def _gap(reached: int, first: int) -> str:
    if first > reached:
        return f"samples {reached} to {first}: no record of what was served"
    return f"samples {first} to {reached}: served twice"


def _difference(found: str, expected: str, ids_only: bool) -> str:
    """What is wrong with a step's word; nothing where it is as it has to be."""
    if found[:16] != expected[:16]:
        return "served other samples than the plan has there"
    return "" if ids_only or found == expected else "served the samples of the plan under other keys"


def _expected(
    verdict: Verdict, run: RunPlan, begins: np.ndarray, batch_size: int, keys: Keys, tallies: Sequence["Tally"]
) -> Iterator[str]:
    """The word of each step as it has to be; the tallies count what their phases have served by then."""
    at_once = max(1, CHUNK_SAMPLES // batch_size)
    numbers = np.array([run.phase_at(begin) for begin in begins.tolist()])
    for number in np.unique(numbers).tolist():
        phase, steps = run.phases[number], begins[numbers == number]
        for some in np.array_split(steps, -(-len(steps) // at_once)):
            epochs, places = phase.plan.places_at((some[:, None] + np.arange(batch_size)).ravel())
            tallies[number].add(epochs, places)
            ids = phase.plan.sample_ids(places)
            for row in np.flatnonzero(np.isin(ids, phase.unreadable)).tolist():
                ids[row] = phase.substitute(int(epochs[row]), int(places[row]))
                verdict.num_substitutes += 1
            words = sample_words(epochs, ids), np.zeros_like(ids) if keys[number] is None else keys[number][ids]
            sums = [each.reshape(-1, batch_size).sum(axis=1, dtype=np.uint64).tolist() for each in words]
            yield from (step_word(*row) for row in zip(*sums, strict=True))


class Tally:
    """What was asked of each axis of a plan, epoch by epoch: how many samples, and the sum of their words.

    The comparison step by step says that a run followed its plan; this says that the plan holds each sample once, and
    it uses nothing of the plan's own arithmetic for that.
    """

    def __init__(self, plan: Plan) -> None:
        self._axes = plan.axes
        self._sums = defaultdict[tuple[int, int], np.ndarray](lambda: np.zeros(2, dtype=np.uint64))

    def add(self, epochs: np.ndarray, places: np.ndarray) -> None:
        """Some samples more."""
        numbers = np.searchsorted([axis.first_place for axis in self._axes], places, side="right") - 1
        for number, epoch in {*zip(numbers.tolist(), epochs.tolist(), strict=True)}:
            chosen = places[(numbers == number) & (epochs == epoch)]
            words = sample_words(np.zeros_like(chosen), chosen)
            self._sums[number, epoch] += np.array([len(chosen), words.sum(dtype=np.uint64)], dtype=np.uint64)

    def whole(self) -> list[tuple[int, int]]:
        """(whole epochs, samples of each) of each axis."""
        return [(len(self._whole_epochs(n)), axis.order.num_samples) for n, axis in enumerate(self._axes)]

    def faults(self) -> Iterator[str]:
        """Epochs with as many samples as the axis has, but not each of them once."""
        for number, axis in enumerate(self._axes):
            whole = self._whole_epochs(number)
            expected = _sum_of_all(axis.first_place, axis.order.num_samples) if whole else 0
            for epoch in whole:
                if int(self._sums[number, epoch][1]) != expected:
                    yield f"epoch {epoch}: {axis.order.num_samples} samples, but not each of them once"

    def _whole_epochs(self, number: int) -> list[int]:
        size = self._axes[number].order.num_samples
        return [epoch for (n, epoch), (count, _) in self._sums.items() if n == number and count == size]


def _sum_of_all(first: int, count: int) -> int:
    """Sum of the words of the places [first, first + count) modulo 2^64."""
    total = 0
    for begin in range(first, first + count, CHUNK_SAMPLES):
        places = np.arange(begin, min(begin + CHUNK_SAMPLES, first + count))
        total += int(sample_words(np.zeros_like(places), places).sum(dtype=np.uint64))
    return total % 2**64


def keys_by_id(size: int, found: Iterable[tuple[int, Sequence[str]]]) -> np.ndarray:
    """uint64 [size] from (id of the first, keys) of each shard."""
    words = np.zeros(size, dtype=np.uint64)
    for first, keys in found:
        if keys:
            words[first : first + len(keys)] = key_words(keys)
    return words
