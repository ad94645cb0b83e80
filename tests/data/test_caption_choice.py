"""Several captions of a sample: one for each epoch, the same on every rank; validation takes the first."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from pipeline.config import UserError
from pipeline.data.captions import CaptionChoice
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader, sequential
from pipeline.data.tar import TarSample
from pipeline.randomness import Draws
from tests.data.small_shards import samples, write_dataset
from tests.data.test_latents import STAMP, write_latents

FIELDS = {"captions": ["a", " b ", ""], "long": "c", "number": 7}
SAMPLE = TarSample("0", {"txt": b"of the shard", "json": json.dumps(FIELDS).encode()})


def test_all_captions_come_equally_often_and_always_the_same():
    choose = CaptionChoice(("captions", "long", "number", "none"), Draws(1))
    drawn = [choose(SAMPLE, epoch, 5) for epoch in range(600)]
    assert drawn == [choose(SAMPLE, epoch, 5) for epoch in range(600)]
    assert set(drawn) == {"a", "b", "c"}
    assert min(Counter(drawn).values()) > 150  # of 200; six standard deviations are 70


def test_without_draws_or_fields_there_is_no_choice():
    assert CaptionChoice(("captions", "long"), None)(SAMPLE, 3, 5) == "a"
    assert CaptionChoice((), Draws(1))(SAMPLE, 3, 5) == "of the shard"
    assert CaptionChoice(("none",), Draws(1))(SAMPLE, 3, 5) == "of the shard"
    broken = TarSample("0", {"txt": b"of the shard", "json": b"{"})
    assert CaptionChoice(("captions",), Draws(1))(broken, 3, 5) == "of the shard"


def test_the_loader_draws_for_sample_and_epoch_alone(tmp_path):
    rows = [TarSample(s.key, s.members | {"json": json.dumps(FIELDS).encode()}) for s in samples(12)]
    write_dataset(str(tmp_path), [rows])
    config = DataConfig(train=str(tmp_path), image_size=8, captions=("captions", "long"))
    seen: dict[tuple[int, int], str] = {}
    for world_size in (1, 2):
        for rank in range(world_size):
            with Loader(str(tmp_path), config, 0, rank, world_size, batch_size=4) as loader:
                for batch in islice(loader.batches(), 6):
                    for place, caption in zip(
                        zip(batch.epochs, batch.sample_ids, strict=True), batch.captions, strict=True
                    ):
                        assert seen.setdefault(place, caption) == caption
    assert len(seen) == 24 and set(seen.values()) == {"a", "b", "c"}
    assert {c for batch in sequential(str(tmp_path), config, batch_size=5) for c in batch.captions} == {"a"}


def test_text_states_belong_to_one_caption(tmp_path):
    write_latents(str(tmp_path), stamp=replace(STAMP, text_digest="c" * 64), states=True)
    config = DataConfig(train=str(tmp_path), captions=("captions",))
    with pytest.raises(UserError, match=r"data.captions: .* text states of one caption; precompute without --text"):
        Loader(str(tmp_path), config, 0, batch_size=2)
