"""Start, stop and the small collectives in a world of one, and what a wrong environment says."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.distributed.deepspeed_engine import settings
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.fragments import written_slices
from pipeline.distributed.process import (
    Process,
    ProcessConfig,
    all_reduce_mean,
    any_rank,
    barrier,
    finish,
    mean_of_floats,
    on_every_rank,
    on_main,
    start,
)
from tests.ranks import run_ranks

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_world_of_one_needs_no_launcher(bare: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        process = start(ProcessConfig(device="cpu"))
        assert process == start(ProcessConfig(device="cpu")) == Process()
        assert torch.equal(all_reduce_mean(torch.tensor([3.0])), torch.tensor([3.0]))
        assert any_rank(True) and not any_rank(False)
        assert mean_of_floats([0.1, 1e300]) == [0.1, 1e300]
        assert on_main(process, lambda: 5) == 5 and on_every_rank(lambda: 6) == [6]
        barrier()
        finish()
    finish()


@pytest.mark.parametrize(
    ("environment", "config", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, {}, "WORLD_SIZE=2 but MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "two"}, {}, "WORLD_SIZE='two' in the environment is not a whole number"),
        ({}, {"device": "gpu"}, "process.device='gpu': use auto, cpu or cuda"),
    ],
)
def test_wrong_environment(
    bare: pytest.MonkeyPatch, environment: dict[str, str], config: dict[str, Any], message: str
) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(UserError, match=message):
        start(ProcessConfig(**config))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(1, 9))
def test_ranks_write_each_element_once_and_alike_much(lengths: list[int], world_size: int) -> None:
    counts = [torch.zeros(length) for length in lengths]
    totals = []
    for rank in range(world_size):
        slices = written_slices(lengths, rank, world_size)
        totals.append(sum(len(range(*share.indices(n))) for share, n in zip(slices, lengths, strict=True)))
        for count, share in zip(counts, slices, strict=True):
            count[share] += 1
    assert all(bool((count == 1).all()) for count in counts)
    assert max(totals) - min(totals) <= 1


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_is_told_what_it_would_choose_badly(stage: int) -> None:
    config = EngineConfig.model_validate({"zero_stage": stage})
    told = settings(config, torch.device("cpu"))
    assert told["gradient_clipping"] == 0.0
    assert 1e6 <= told["zero_optimization"]["reduce_bucket_size"] <= 5e7


def fail_on_rank_one() -> int:
    process = start()
    if process.rank == 1:
        raise ValueError("rank one has had enough")
    return process.rank


def test_a_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match="rank 1 failed:\n(.|\n)*rank one has had enough"):
        run_ranks(fail_on_rank_one, 2)
