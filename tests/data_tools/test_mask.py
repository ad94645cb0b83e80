"""Masks: what each rule removes, duplicates near and exact, and a loader that sees the chosen samples alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.mask import MaskConfig, make_selection
from data_tools.perceptual import far_apart
from data_tools.shard import ShardConfig
from pipeline.config import UserError
from pipeline.data.dataset import DataConfig
from pipeline.data.loader import Loader, OrderedReader
from pipeline.data.selection import load_selection, remove_selection
from pipeline.data.shards import load_manifest
from tests.data_tools.test_data_commands import run
from tests.data_tools.test_shard import shard_dataset as shard

CAPTIONS = ["a red house by the sea", "ein rotes Haus am Meer und ein Boot", "cat", "the dog sleeps under the old tree"]


def photo(seed: int, side: int) -> Image.Image:
    """Smooth waves, so that pictures have a look that survives scaling and compression."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = sum(
        rng.uniform(-1, 1) * np.sin(2 * np.pi * (a * x + b * y) + rng.uniform(0, 6)) for a in range(4) for b in range(4)
    )
    grey = np.uint8(255 * (waves - waves.min()) / (waves.max() - waves.min()))
    return Image.fromarray(grey).convert("RGB")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten pictures in shards of three: 0-3 of the captions above, 4 and 5 alike, 6 and 7 equal, 8 small, 9 long."""
    folder = tmp_path_factory.mktemp("mask")
    rows = []
    for n in range(10):
        picture = photo(n, 64)
        if n == 5:
            picture = photo(4, 64).resize((48, 48)).resize((64, 64))
        if n == 7:
            picture = photo(6, 64)
        if n == 8:
            picture = photo(8, 16)
        if n == 9:
            picture = photo(9, 64).crop((0, 0, 64, 16))
        picture.save(folder / f"{n}.jpg", quality=90)
        rows.append({"path": f"{n}.jpg", "caption": CAPTIONS[n % 4], "score": n / 10, "n": n})
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shard(str(folder / "t.jsonl"), str(folder / "out"), ShardConfig(resize="none", samples_per_shard=3), 1)
    return str(folder / "out")


def kept(shards: str, **rules: object) -> set[int]:
    """The numbers of the pictures that count."""
    manifest = load_manifest(shards)
    selection = make_selection(shards, manifest, MaskConfig(**rules), num_workers=1)
    with OrderedReader(shards, DataConfig(train="", image_size=8), batch_size=16) as reader:
        numbers = [json.loads(row)["n"] for batch in reader.batches() for row in batch.metadata]
    assert sum(selection.removed.values()) == (~selection.keep).sum()
    return {n for n, keep in zip(numbers, selection.keep, strict=True) if keep}


@pytest.mark.parametrize(
    ("rules", "removed"),
    [
        ({"min_side": 17}, {8, 9}),
        ({"max_aspect": 2}, {9}),
        ({"min_words": 2}, {2, 6}),
        ({"max_words": 6}, {1, 3, 5, 7, 9}),
        ({"where": ("score >= 0.5", "n != 7")}, {0, 1, 2, 3, 4, 7}),
        ({"where": ("caption == cat",)}, {0, 1, 3, 4, 5, 7, 8, 9}),
    ],
)
def test_rules(shards: str, rules: dict, removed: set[int]) -> None:
    assert set(range(10)) - kept(shards, **rules) == removed


def test_language(shards: str) -> None:
    pytest.importorskip("py3langid")
    assert {1, 5, 9} <= set(range(10)) - kept(shards, language="en") <= {1, 2, 5, 6, 9}


def test_duplicates(shards: str) -> None:
    assert len({6, 7} & kept(shards, exact_duplicates=True)) == 1 and len(kept(shards, exact_duplicates=True)) == 9
    near = kept(shards, near_duplicates=4)
    assert len({6, 7} & near) == 1 and len({4, 5} & near) == 1 and {0, 1, 2, 3} <= near


def test_opt_outs_by_key_and_by_name(shards: str, tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("3.jpg\n\nhttp://elsewhere\n")
    assert kept(shards, opt_out=str(tmp_path / "no.txt")) == set(range(10)) - {3}


def test_far_apart_is_exact() -> None:
    """Against all pairs."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 20, dtype=np.uint64)
    words = np.array(
        [
            int(rng.choice(centres)) ^ sum({1 << int(b) for b in rng.integers(0, 63, rng.integers(0, 8))})
            for _ in range(300)
        ],
        dtype=np.uint64,
    )
    candidates = rng.random(300) < 0.8
    taken: list[int] = []
    for place in np.flatnonzero(candidates):
        if all((int(words[place]) ^ int(words[other])).bit_count() > 5 for other in taken):
            taken.append(int(place))
    assert np.flatnonzero(far_apart(words, candidates, 5)).tolist() == taken


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({}, "no rule given"),
        ({"where": ("score ~ 3",)}, "write COLUMN OPERATOR VALUE"),
        ({"where": ("scores > 3",)}, r"no column scores; did you mean score\?"),
        ({"where": ("score > much",)}, "holds numbers, 'much' is none"),
    ],
)
def test_wrong_rules_are_told(shards: str, rules: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_selection(shards, load_manifest(shards), MaskConfig(**rules), 1)


def test_the_loader_sees_the_selection(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each chosen sample once an epoch, for every number of ranks; and another digest, so that no run mixes them up."""
    config = DataConfig(train="", image_size=8, num_lanes=4, block_samples=2)
    with Loader(shards, config, 0, batch_size=2) as loader:
        whole = loader.digest
    assert run("mask", shards, "--where", "score >= 0.4", "--stats") == 0 and load_selection_of(shards) is None
    assert "6 of 10 samples would be kept" in capsys.readouterr().out
    assert run("mask", shards, "--where", "score >= 0.4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == {"not score >= 0.4": 4}
    try:
        for world_size in (1, 2):
            seen: list[int] = []
            for rank in range(world_size):
                with Loader(shards, config, 0, rank, world_size, batch_size=2) as loader:
                    assert loader.num_samples == 6 and loader.digest != whole
                    stream = loader.batches()
                    seen += [json.loads(row)["n"] for _ in range(3) for row in next(stream).metadata]
            assert sorted(seen) == [4, 5, 6, 7, 8, 9]
        with OrderedReader(shards, config, batch_size=4) as reader:
            assert sum(len(batch.keys) for batch in reader.batches()) == 6
        Path(shards, "selection.bits").write_bytes(b"\xff\xff")
        with pytest.raises(UserError, match="holds other bits than it says"):
            load_selection_of(shards)
    finally:
        assert run("mask", shards, "--clear") == 0
    assert load_selection_of(shards) is None


def load_selection_of(shards: str) -> object:
    return load_selection(shards, load_manifest(shards))


def test_a_selection_of_another_state_or_of_nothing_is_refused(shards: str) -> None:
    manifest = load_manifest(shards)
    make_selection(shards, manifest, MaskConfig(where=("score > 5",)), 1).save(shards)
    try:
        with pytest.raises(UserError, match="leaves no sample"):
            load_selection(shards, manifest)
        with pytest.raises(UserError, match="made for another state"):
            load_selection(shards, type(manifest)("images", manifest.shards[:1]))
    finally:
        remove_selection(shards)
