"""The same command resumes: a run killed by SIGKILL gives, number for number, what an undisturbed one gives."""

from pathlib import Path

import pytest

from pipeline.tracking.journal import read_events
from tests.runs import ROOT, drawn_shards, kill_after_step, losses, run, start

EVERY_STEP = ("trainer.log_every_steps=1", "trainer.checkpoint_every_samples=64", "trainer.validate_every_samples=96")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little dataset and a finished first stage, `undisturbed-autoencoder`."""
    folder = tmp_path_factory.mktemp("resume")
    drawn_shards(folder, 90)
    drawn_shards(folder, 10, "held-out")
    (folder / "console.txt").write_text(run(folder, *train("autoencoder", "undisturbed-autoencoder")))
    return folder


def train(kind: str, name: str) -> list[str]:
    """The words of a small training of 12 steps that crosses two epochs, saving every fourth step."""
    words = ["pipeline", "train", str(ROOT / "configs" / kind / "debug.yaml"), f"run={name}", "data.train=train"]
    words += ["data.validation=held-out", "trainer.total_samples=192", *EVERY_STEP]
    return words + (["autoencoder=undisturbed-autoencoder"] if kind == "diffusion" else [])


def test_every_line_says_how_much_of_the_start_was_effective(place: Path) -> None:
    lines = [line for line in (place / "console.txt").read_text().splitlines() if "/192 samples" in line]
    events = [event for event in read_events(place / "undisturbed-autoencoder") if event.kind == "metrics"]
    shares = [event.body["values"]["ettr"] for event in events if "ettr" in event.body["values"]]
    assert len(lines) == len(shares) == 12
    assert all(0 < share < 1 and f"ETTR {share:.0%} " in line for share, line in zip(shares, lines, strict=True))


@pytest.mark.parametrize(("kind", "kill_at"), [("autoencoder", 6), ("diffusion", 9)])
def test_a_killed_run_goes_on_to_the_same_numbers(place: Path, kind: str, kill_at: int) -> None:
    quiet, killed = place / f"undisturbed-{kind}", place / f"killed-{kind}"
    if kind == "diffusion":
        run(place, *train(kind, quiet.name))
    process = start(place, *train(kind, killed.name))
    kill_after_step(process, killed, kill_at)
    assert max(losses(killed)) < 12, "killed in the middle"

    run(place, *train(kind, killed.name))

    expected, found = losses(quiet), losses(killed)
    assert sorted(expected) == list(range(1, 13))
    assert found == expected  # floats, bit for bit, losses and gradient norms and validation figures alike
    assert "already trained" in run(place, *train(kind, killed.name))


def test_sigterm_saves_at_the_step_and_the_next_start_goes_on(place: Path) -> None:
    name = "stopped-autoencoder"
    words = [*train("autoencoder", name), "trainer.total_samples=64000", "optim.decay=constant"]
    process = start(place, *words)
    while len(losses(place / name)) < 3:
        assert process.poll() is None, process.communicate()[0]
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output  # stopped is not done
    last = max(losses(place / name))
    run(place, *words, f"trainer.total_samples={16 * (last + 2)}")
    assert sorted(losses(place / name)) == list(range(1, last + 3))


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [3, 4, 5, 9], ids=["first-phase", "its-last-step", "boundary", "second-phase"])
def test_a_curriculum_goes_on_to_the_same_numbers(place: Path, kill_at: int) -> None:
    """32 pixels in steps of 16, from 72 samples on 64 pixels in steps of 8: the phases meet at 80 samples, step 5."""
    quiet, killed = place / "undisturbed-curriculum", place / f"killed-curriculum-{kill_at}"
    large = place / "large" / "train"
    if not large.exists():
        drawn_shards(place / "large", 90, image_size=64)
    phase = "{until_samples: 72, train: train, validation: held-out, image_size: 32, batch_size: 16}"

    def words(name: str) -> list[str]:
        own = [f"data.train={large}", "data.validation=null", "data.image_size=64", "trainer.batch_size=8"]
        own += [f"phases=[{phase}]", "stage.objective.schedule.shift=2", "trainer.checkpoint_every_samples=40"]
        return [*train("diffusion", name), *own]

    if not quiet.exists():
        run(place, *words(quiet.name))
    process = start(place, *words(killed.name))
    kill_after_step(process, killed, kill_at)
    run(place, *words(killed.name))
    expected, found = losses(quiet), losses(killed)
    assert sorted(expected) == list(range(1, 5 + 14 + 1))  # 5 x 16 + 14 x 8 = 192
    assert found == expected
