"""Two ranks killed at every point of a save under every ZeRO stage, and every file of a checkpoint cut or altered: each
time the next start goes on from a whole generation to the losses of an undisturbed run, bit for bit."""

import multiprocessing
from pathlib import Path

import pytest

from benchmarks.faults import SYSTEMS, System, trials
from tests.checkpoint.faults import load_libraries


def in_a_process_of_its_own(system: System, folder: Path) -> None:
    load_libraries()
    kills, damages = trials(system, folder)
    assert len(kills) > 20 and len(damages) == 12
    lost = {where: what for where, what in {**kills, **damages}.items() if what}
    assert not lost, lost


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", SYSTEMS["ours"], ids=lambda system: system.variant)
def test_every_kill_and_every_damage_is_recovered(tmp_path: Path, system: System) -> None:
    context = multiprocessing.get_context("spawn")  # it forks, and this process has threads
    child = context.Process(target=in_a_process_of_its_own, args=(system, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == 0
