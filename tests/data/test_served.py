"""The words of the ledger: the same for any split over ranks, another for any other sample, epoch or key."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batch import Batch
from pipeline.data.served import Ledger, batch_floats, key_words, sample_words

SAMPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.text(max_size=5)), min_size=8, max_size=8)


class Pages:
    """A journal that keeps what it is given."""

    def __init__(self):
        self.rows = []

    def served(self, first, batch_size, ranks, words):
        self.rows.append((first, batch_size, ranks, list(words)))


def batch_of(rows):
    return Batch([r[1] for r in rows], [r[0] for r in rows], [r[2] for r in rows], [""] * len(rows))


def words_of(rows, world_size):
    """As the trainer does it: a mean over ranks of each float."""
    shares = [batch_floats(batch_of(rows[rank::world_size])) for rank in range(world_size)]
    ledger, pages = Ledger(""), Pages()
    ledger.add(0, 8, np.mean(shares, axis=0).tolist(), world_size)
    ledger.write(pages, world_size)
    return pages.rows[0][3]


@given(SAMPLES, st.sampled_from([1, 2, 4, 8]))
def test_ranks_do_not_change_the_word(rows, world_size):
    assert words_of(rows, world_size) == words_of(rows, 1)


@given(SAMPLES, st.integers(0, 7), st.integers(0, 2))
def test_anything_else_does(rows, place, field):
    changed = list(rows)
    other = list(rows[place])
    other[field] = other[field] + (1 if field < 2 else "x")
    changed[place] = tuple(other)
    assert words_of(changed, 1) != words_of(rows, 1)


def test_words_are_the_same_on_every_machine():
    assert sample_words(np.array([0, 1]), np.array([5, 5])).tolist() == GOLDEN
    assert key_words(["00005"]).tolist() == GOLDEN_KEY


def kept(ledger, floats, first, batch_size=1):
    """The pages of some steps."""
    pages = Pages()
    for step, row in enumerate(floats):
        ledger.add(first + step * batch_size, batch_size, row, 1)
    ledger.write(pages, 1)
    return pages.rows


def test_the_chain_is_that_of_one_undisturbed_run():
    floats = [batch_floats(batch_of([(0, n, str(n))])) for n in range(4)]
    whole, first = Ledger(""), Ledger("")
    ((*head, words),) = kept(whole, floats, 0)
    assert head == [0, 1, 1] and len(words) == 4
    before = kept(first, floats[:1], 0)
    second = Ledger(first.chain)
    after = kept(second, floats[1:], 1)
    assert second.chain == whole.chain and len(whole.chain) == 32
    assert before[0][3] + after[0][3] == words and after[0][0] == 1
    assert kept(second, [], 4) == []  # nothing new


def test_another_batch_size_begins_another_page():
    ledger = Ledger("")
    for begin, size in ((0, 4), (4, 4), (8, 2)):
        ledger.add(begin, size, [0.0, 1.0, 2.0, 3.0], 1)
    assert [row[:2] for row in kept(ledger, [], 0)] == [(0, 4), (8, 2)]


GOLDEN = [3229617434947505891, 12966676493058619558]
GOLDEN_KEY = [11623921489197001024]
