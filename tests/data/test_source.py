"""Blocks as they are fetched: neighbours share a read, and share neither damage nor memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.data.dataset import DataConfig, make_plan, open_datasets
from pipeline.data.index import BlockIndex, ShardTable
from pipeline.data.source import BlockSource
from pipeline.data.tar import TarError
from tests.data.small_shards import write_pictures

COUNTS, BLOCK = [30, 0, 34], 4
NUM_BLOCKS = sum(COUNTS) // BLOCK
"""The eighth lies in two shards."""


class Counted(BlockSource):
    """Remembers its reads."""

    def __init__(self, url: str) -> None:
        config = DataConfig(train=url, block_samples=BLOCK, num_lanes=1)
        datasets = open_datasets(url, BLOCK)
        plan = make_plan(datasets, None, config, 0, 1)
        shards = ShardTable([(each.url, each.manifest.shards, each.first_id) for each in datasets])
        super().__init__(BlockIndex(shards, plan, BLOCK), NUM_BLOCKS, 2)
        self.reads: list[tuple[str, int, int]] = []
        read = self.ranged.read
        self.ranged.read = lambda *place: self.reads.append(place) or read(*place)


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_pictures(str(tmp_path), COUNTS)
    return str(tmp_path)


@pytest.fixture
def source(url: str) -> Iterator[Counted]:
    opened = Counted(url)
    yield opened
    opened.close()


def test_neighbours_that_are_wanted_together_are_read_together(source: Counted, url: str) -> None:
    single = Counted(url)
    alone = [single.get(block) for block in range(NUM_BLOCKS)]
    single.close()
    order = [5, 1, 0, 2, 15, 6, *range(7, 15), 3, 4]
    source.prefetch(order)
    assert [source.get(block) for block in range(NUM_BLOCKS)] == alone
    assert source.ranged.num_bytes == single.ranged.num_bytes
    assert len(single.reads) == NUM_BLOCKS + 1  # one block lies in two shards
    assert len(source.reads) == 6  # blocks 2-5, 0-1, 12-15, 6-7 from two shards, 8-11


def test_blocks_that_are_there_are_not_read_again(source: Counted) -> None:
    source.get(2)
    source.prefetch([1, 2, 3])
    source.get(1), source.get(3)
    assert len(source.reads) == 3 and len({start for _, start, _ in source.reads}) == 3


def test_damage_stays_in_its_block(source: Counted, url: str) -> None:
    path = Path(url, "00000.tar")
    data = bytearray(path.read_bytes())
    data[100] ^= 255  # in the first header
    path.write_bytes(data)
    source.prefetch([0, 1])
    assert isinstance(source.get(0), TarError)
    assert [sample.key for sample in source.get(1)] == ["00004", "00005", "00006", "00007"]


def test_a_failed_read_is_told_to_all_who_wait(source: Counted, url: str) -> None:
    Path(url, "00000.tar").unlink()
    source.prefetch([0, 1])
    for block in (1, 0):
        with pytest.raises(UserError, match="00000.tar: not found"):
            source.get(block)
