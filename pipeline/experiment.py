"""The whole configuration, composed once, and the staircase that builds a run from it.

`load_experiment` is the only place that knows every room's config; `train` claims the run folder, builds the parts in
order and hands them to the one loop. Called by `tessera train`, and by the launcher to check a config before a queue.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.checkpoint.generation import DamagedError, Generation, committed
from pipeline.checkpoint.package import Package, load_package
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import Config, UserError, config_differences, config_digest, load_config
from pipeline.data.curriculum import Curriculum, PhaseConfig, open_curriculum
from pipeline.data.dataset import DataConfig, joined_digest, parts_of
from pipeline.data.latents import check_text, read_stamp
from pipeline.data.selection import selection_digest
from pipeline.data.shards import load_manifest
from pipeline.data.stream import stream_digest
from pipeline.distributed import process as processes
from pipeline.distributed.engine import EngineConfig
from pipeline.distributed.process import Process, ProcessConfig, on_main
from pipeline.distributed.watchdog import watching
from pipeline.export import resolve
from pipeline.models.packaged import load_autoencoder
from pipeline.optim import OptimConfig
from pipeline.pace import Peak
from pipeline.redact import redact
from pipeline.roofline import peak_flops, peak_of_phases
from pipeline.run_folder import RunFolder, changes_since_start, claim, sole_trainer
from pipeline.stages.autoencoder import AutoencoderStage, AutoencoderStageConfig
from pipeline.stages.diffusion import DiffusionStage, DiffusionStageConfig
from pipeline.tracking.follower import Follower
from pipeline.tracking.journal import Journal
from pipeline.tracking.lineage import Lineage, git_state, versions
from pipeline.tracking.report import write_report
from pipeline.tracking.system import start_sampler
from pipeline.trainer import Stage, TrainerConfig, fit

StageConfig = Annotated[AutoencoderStageConfig | DiffusionStageConfig, Field(discriminator="kind")]


class TrackingConfig(Config):
    """Where the journal is shipped to."""

    uri: str | None = None
    """MLflow address; None is MLFLOW_TRACKING_URI, or else sqlite:///runs/mlflow.db."""


class ExperimentConfig(Config):
    """One run, whole."""

    run: str
    """Folder of the run; the same folder again resumes."""
    seed: int = Field(default=0, ge=0)
    """Seed of every draw: initial weights, order, noise, crops."""
    data: DataConfig
    """What to train and validate on."""
    autoencoder: str | None = None
    """Second stage: the first stage that it learns on (models:/name@alias, run folder or exported folder)."""
    stage: StageConfig
    """The objective and its models."""
    engine: EngineConfig = EngineConfig()
    """How the models are spread over ranks."""
    process: ProcessConfig = ProcessConfig()
    """Device and rendezvous."""
    optim: OptimConfig
    """The optimizer of the stage's (generator's) weights."""
    trainer: TrainerConfig
    """Length and cadences."""
    phases: tuple[PhaseConfig, ...] = ()
    """Second stage: what comes before, on smaller pictures; the rest of the config describes the last phase."""
    tracking: TrackingConfig = TrackingConfig()
    """Where figures go."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> "ExperimentConfig":
        tree = self.model_dump(mode="json")
        names = [line.partition(":")[0] for line in config_differences(tree, redact(tree))]
        if names:
            raise ValueError(
                f"{', '.join(names)}: holds a secret, and the config is stored with the run; give it in the environment"
                ", such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or AWS_SECRET_ACCESS_KEY"
            )
        return self

    @model_validator(mode="after")
    def _phases_rise(self) -> "ExperimentConfig":
        ends = [phase.until_samples for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError(f"phases: until_samples are {ends}; each must be larger than the one before")
        if ends and self.stage.kind != "diffusion":
            raise ValueError("phases: belong to a diffusion stage")
        return self

    @model_validator(mode="after")
    def _second_stage_names_its_first(self) -> "ExperimentConfig":
        if (self.stage.kind == "diffusion") != (self.autoencoder is not None):
            raise ValueError("autoencoder: a diffusion stage names its first stage here, an autoencoder stage does not")
        if self.stage.kind == "autoencoder" and self.data.validation is None:
            raise ValueError(
                "data.validation: an autoencoder needs some, its latents' mean and std are measured on it; "
                "where nothing is held out, name the training data"
            )
        return self


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and check a config file; see `pipeline.config.load_config` for the errors."""
    return load_config(path, ExperimentConfig, overrides)


def is_finished(config: ExperimentConfig) -> bool:
    """True when a committed generation of this run has seen all samples. Reads small files only.

    Raises:
        UserError: the folder holds another run.
    """
    run = RunFolder(Path(config.run))
    for path in committed(run.checkpoints):
        with suppress(DamagedError):  # a damaged one is found and told when training restores
            if Generation.open(path).progress["samples_seen"] >= config.trainer.total_samples:
                changes_since_start(run, config)
                return True
    return False


def train(config: ExperimentConfig) -> bool:
    """Claim the run folder, build, fit, close; True when all samples have been seen, False after a stop.

    Raises:
        UserError: on every rank alike, before any training.
    """
    process = processes.start(config.process)
    run = RunFolder(Path(config.run))
    alone = ExitStack()
    try:
        on_main(process, partial(_claim, config, run, process, alone))
        watched = watching(run.heartbeats, process.rank, process.world_size, config.process.hang_seconds)
        with watched, _tracked(config, run, process) as journal:
            stage, loader, checkpoints = build(config, run, process)
            with closing(loader):
                peak = _peak(config, run, process)
                state = fit(stage, loader, checkpoints, journal, process, config.trainer, run.samples, peak)
                checkpoints.settle()
            finished = state.samples_seen >= config.trainer.total_samples
            journal.ended("finished" if finished else "stopped")
        return finished
    finally:
        alone.close()
        processes.finish()


def build(config: ExperimentConfig, run: RunFolder, process: Process) -> tuple[Stage, Curriculum, CheckpointStore]:
    """The staircase: first stage, data, stage, checkpoints; each stands on the ones before it."""
    first = load_package(run.autoencoder) if config.autoencoder else None
    what = (config.phases, config.data, config.trainer.batch_size, config.seed, process.rank, process.world_size)
    loader = open_curriculum(*what, run.quarantine, first.digest if first else None)
    stage = _build_stage(config, process, first)
    kept = (config.trainer.keep_checkpoints, config.trainer.keep_every_samples, config.trainer.checkpoint_mirror)
    checkpoints = CheckpointStore(run.checkpoints, process, *kept)
    return stage, loader, checkpoints


def _peak(config: ExperimentConfig, run: RunFolder, process: Process) -> Peak | None:
    """What the MFU is measured by; None where no peak is known, and on ranks that tell nothing."""
    bf16 = config.engine.precision == "bf16"
    flops = peak_flops(process.device, bf16, config.process.peak_tflops)
    if flops is None or not process.is_main:
        return None
    first = load_package(run.autoencoder).config if config.autoencoder else None
    phases = [(one.data, one.trainer.total_samples) for one in phases_of(config)]
    return peak_of_phases(config.stage, bf16, first, phases, process.world_size * flops)


def phases_of(config: ExperimentConfig) -> list[ExperimentConfig]:
    """Each phase as a config of its own, with the samples of that phase alone; one without phases is its only one."""
    alone, begin = [], 0
    for phase in config.phases:
        length = {"batch_size": phase.batch_size, "total_samples": phase.until_samples - begin}
        trainer, begin = config.trainer.model_copy(update=length), phase.until_samples
        alone.append(config.model_copy(update={"data": phase.data(config.data), "trainer": trainer, "phases": ()}))
    last = config.trainer.model_copy(update={"total_samples": max(config.trainer.total_samples - begin, 0)})
    return [*alone, config.model_copy(update={"trainer": last, "phases": ()})]


def _build_stage(config: ExperimentConfig, process: Process, first: Package | None) -> Stage:
    """The stage of the config's kind."""
    if isinstance(config.stage, AutoencoderStageConfig):
        return AutoencoderStage(config.stage, config.engine, config.optim, process, config.seed)
    assert first is not None, "the config's validator asks for it"
    autoencoder = load_autoencoder(first)
    if not autoencoder.has_statistics:
        raise UserError(f"{first.folder}: saved before its first validation; its latents' mean and std are unknown")
    shifts = [(phase.until_samples, phase.shift) for phase in config.phases]
    stage = DiffusionStage(config.stage, config.engine, config.optim, process, config.seed, autoencoder, shifts)
    for url in (url for one in phases_of(config) for url in one.data.urls):
        manifest = load_manifest(url)
        if stage.text.frozen and manifest.kind == "latents":  # a tower that learns never reads stored states
            check_text(read_stamp(manifest, url), stage.text.digest(), url)
    return stage


def _claim(config: ExperimentConfig, run: RunFolder, process: Process, alone: ExitStack) -> None:
    """Make or reopen the run folder; a second stage gets its own copy of the first, so that no alias can move it.

    What the config names is looked up first, so that a mistake leaves no folder behind; `alone` holds the claim.
    """
    first = None
    if config.autoencoder is not None:
        first = load_package(run.autoencoder if run.autoencoder.exists() else resolve(config.autoencoder))
    lineage = _lineage(config, process, first)
    alone.enter_context(sole_trainer(run))
    shutil.rmtree(run.heartbeats, ignore_errors=True)  # of an earlier start
    run.heartbeats.mkdir(exist_ok=True)  # a rank of that start may write its last beat meanwhile
    started = bool(committed(run.checkpoints))
    for change in claim(run, config, lineage.model_dump(mode="json"), started):
        print(f"{run.path}: changed since its start: {change}")
    if first is not None and not run.autoencoder.exists():
        partial_copy = run.path / ".autoencoder.partial"
        shutil.rmtree(partial_copy, ignore_errors=True)
        shutil.copytree(first.folder, partial_copy)
        partial_copy.rename(run.autoencoder)


def _lineage(config: ExperimentConfig, process: Process, first: Package | None) -> Lineage:
    """What this run starts from."""
    commit, dirty = git_state(Path(__file__).parent)
    earlier = [_data_record(one.data) for one in phases_of(config)[:-1]]
    return Lineage(
        run=run_name(config),
        stage=config.stage.kind,
        data_url=", ".join(part.url for part in parts_of(config.data.train)),
        **_data_record(config.data),
        earlier_data_digests=tuple(record.get("selection_digest") or record["data_digest"] for record in earlier),
        autoencoder_digest=first.digest if first else None,
        autoencoder_ref=config.autoencoder,
        config_digest=config_digest(config),
        git_commit=commit,
        git_dirty=dirty,
        world_size=process.world_size,
        versions=versions(),
    )


def _data_record(data: DataConfig) -> dict[str, Any]:
    """The data's part of the lineage: digests of the pictures, of latents where these are read, and of selections."""
    record = _training_record(data)
    if data.validation:
        manifest = load_manifest(data.validation)
        record["validation_digest"] = manifest.digest
        record["validation_selection_digest"] = selection_digest(data.validation, manifest)
    return record | {"validation_url": data.validation}


def _training_record(data: DataConfig) -> dict[str, Any]:
    """Of the training data alone."""
    if data.order == "stream":
        return {"data_digest": stream_digest(data.stream_url)}
    parts = [(part.url, load_manifest(part.url)) for part in parts_of(data.train)]
    selections = [selection_digest(*part) for part in parts]
    chosen = [selection or manifest.digest for selection, (_, manifest) in zip(selections, parts, strict=True)]
    record = {"selection_digest": joined_digest(chosen) if any(selections) else None}
    read = joined_digest([manifest.digest for _, manifest in parts])
    if parts[0][1].kind == "latents":
        sources = [read_stamp(manifest, url).source_digest for url, manifest in parts]
        return record | {"data_digest": joined_digest(sources), "latents_digest": read}
    return record | {"data_digest": read}


def run_name(config: ExperimentConfig) -> str:
    """Name of the run in reports and in MLflow: the last two parts of its folder."""
    return "/".join(Path(config.run).parts[-2:])


@contextmanager
def _tracked(config: ExperimentConfig, run: RunFolder, process: Process) -> Iterator[Journal]:
    """The journal, with its follower and the report on the main rank; an exception is written down as the end."""
    journal = Journal(run.path, enabled=process.is_main)
    journal.params(config.model_dump(mode="json"))
    follower = Follower(run.path, config.tracking.uri) if process.is_main else None
    if process.local_rank == 0 and not process.is_main:
        start_sampler(run.path)
    try:
        yield journal
    except BaseException as error:
        journal.ended("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if follower is not None:
            write_report(run.path)
            follower.close()
