"""What a model must pass before it may go live: bounds on its measured values, and completeness of its record.

Pure: facts and bounds in, verdicts out. The bounds stand in a YAML file (configs/promote.yaml), one section for each
registered model. Called by `promotion`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from pipeline.checkpoint.package import Package
from pipeline.config import Config, UserError, config_differences, parse_config
from pipeline.tracking.lineage import Lineage

VALUE_CHARACTERS = 120
"""Longest value in the table of verdicts."""


class BoundConfig(Config):
    """What one metric must reach. Exactly one of `min` and `max`: it also says which direction is better."""

    min: float | None = None
    """At least this much; more is better."""
    max: float | None = None
    """At most this much; less is better."""
    not_worse_by: float | None = None
    """May fall behind the champion's value by this much; both must have been measured under one protocol."""

    @model_validator(mode="after")
    def _one_direction(self) -> "BoundConfig":
        if (self.min is None) == (self.max is None):
            raise ValueError("give exactly one of min and max")
        return self

    def limit(self, champion: float | None) -> float:
        """The value that decides, the champion's included."""
        if self.min is not None:
            floor = -float("inf") if champion is None or self.not_worse_by is None else champion - self.not_worse_by
            return max(self.min, floor)
        assert self.max is not None
        ceiling = float("inf") if champion is None or self.not_worse_by is None else champion + self.not_worse_by
        return min(self.max, ceiling)

    def holds(self, value: float, champion: float | None) -> bool:
        """True when `value` is good enough; never for nan."""
        return value >= self.limit(champion) if self.min is not None else value <= self.limit(champion)


class GateConfig(Config):
    """The gates of one registered model."""

    metrics: dict[str, BoundConfig] = {}
    """Bounds by the name of the metric in evaluation.json."""
    may_lack: tuple[str, ...] = ()
    """Fields that the lineage need not have, such as git_commit for code that was installed as a package."""
    approval: bool = False
    """True when a person must have approved the version: `tessera registry approve`, or its tag `approved_by`."""


@dataclass(frozen=True)
class Facts:
    """What the registry knows and the package does not."""

    evaluation: Mapping[str, Any] | None = None
    """Content of the version's evaluation.json."""
    champion: Mapping[str, Any] | None = None
    """The same of the champion that it would replace; None if there is none."""
    autoencoder: str | None = None
    """Registered version of the autoencoder that a latent-unet was trained on; None if there is none."""
    approved_by: str | None = None
    """Who approved it."""


@dataclass(frozen=True)
class Verdict:
    """The answer of one gate."""

    gate: str
    """Its name."""
    value: str
    """What was found."""
    bound: str
    """What was asked for."""
    passed: bool
    """Whether that is enough."""


def load_gates(path: Path | str, name: str, kind: str) -> GateConfig:
    """The section of the file for the registered model `name`, or else that for its kind.

    Raises:
        UserError: no such file, not YAML, no section for this model, or an unknown setting.
    """
    place = Path(path)
    if not place.is_file():
        raise UserError(f"{place}: no such file of gates; name one with --gates")
    try:
        tree = yaml.safe_load(place.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from None
    sections = tree if isinstance(tree, Mapping) else {}
    section = sections.get(name, sections.get(kind))
    if not isinstance(section, Mapping):
        there = ", ".join(sections) or "none"
        raise UserError(f"{place}: no gates for {name} or {kind}; add a section (there is {there})")
    return parse_config(section, GateConfig, source=f"{place}: {name if name in sections else kind}")


def judge(package: Package, facts: Facts, gates: GateConfig) -> list[Verdict]:
    """Every gate's verdict on a package whose files were verified."""
    approved = _present("approval", bool(facts.approved_by), facts.approved_by, "`tessera registry approve`")
    return [
        _judge_lineage(package, gates),
        _present("preview", (package.folder / "preview.png").is_file(), None, "in the package"),
        *([_judge_autoencoder(facts.autoencoder)] if package.autoencoder else []),
        _judge_origin(package, facts.evaluation),
        *_judge_protocol(facts.evaluation or {}, facts.champion, gates),
        *_judge_metrics(facts.evaluation or {}, facts.champion or {}, gates),
        *([approved] if gates.approval else []),
    ]


def _present(gate: str, there: bool, value: str | None, bound: str) -> Verdict:
    return Verdict(gate, (value or "there") if there else "missing", bound, there)


def _judge_autoencoder(ref: str | None) -> Verdict:
    return _present("autoencoder", ref is not None, ref, "a registered version")


def _judge_lineage(package: Package, gates: GateConfig) -> Verdict:
    try:
        gaps = [name for name in Lineage.model_validate(package.lineage).gaps() if name not in gates.may_lack]
    except ValidationError as error:
        gaps = [str(problem["loc"][-1]) for problem in error.errors()]
    return Verdict("lineage", f"gaps: {', '.join(gaps)}" if gaps else "complete", "complete", not gaps)


def _judge_origin(package: Package, evaluation: Mapping[str, Any] | None) -> Verdict:
    """The figures must have been measured on these very weights."""
    if evaluation is None:
        return Verdict("evaluation", "missing", "made by `tessera evaluate`", False)
    measured = str(evaluation.get("package_digest"))
    return Verdict("evaluation", f"of {measured[:12]}", f"of {package.digest[:12]}", measured == package.digest)


def _judge_protocol(
    evaluation: Mapping[str, Any], champion: Mapping[str, Any] | None, gates: GateConfig
) -> Iterator[Verdict]:
    """Where a figure must not fall behind the champion's, both must have been measured in the same way."""
    if champion is None or all(bound.not_worse_by is None for bound in gates.metrics.values()):
        return
    changes = config_differences({"p": champion.get("protocol")}, {"p": evaluation.get("protocol")})
    found = "; ".join(line.removeprefix("p.") for line in changes)[:VALUE_CHARACTERS] or "equal"
    yield Verdict("protocol", found, "the champion's; `tessera evaluate` both alike", not changes)


def _judge_metrics(evaluation: Mapping[str, Any], champion: Mapping[str, Any], gates: GateConfig) -> Iterator[Verdict]:
    """Each bound against its metric, and against the champion's."""
    values, rivals = evaluation.get("metrics", {}), champion.get("metrics", {})
    for name, bound in gates.metrics.items():
        rival = rivals.get(name)
        sign = ">=" if bound.min is not None else "<="
        text = f"{sign} {bound.limit(rival):.6g}"
        if rival is not None and bound.not_worse_by is not None:
            text += f" (champion {rival:.6g})"
        if name not in values:
            yield Verdict(name, "not measured", text, False)
        else:
            yield Verdict(name, f"{values[name]:.6g}", text, bound.holds(float(values[name]), rival))
