"""setup.cfg names every library that the code imports, constraints.txt pins it, and neither names anything else."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

from tests.source import PACKAGES, ROOT

NEEDED_BY_OTHERS = {
    "boto3": "mlflow's server keeps artifacts on s3:// through it",
    "psycopg": "mlflow's server speaks to PostgreSQL through it",
    "s3fs": "fsspec opens s3:// URLs through it",
    "mypy": "make lint",
    "ruff": "make lint",
    "types-pyyaml": "make lint",
    "pytest-timeout": "stops a test that hangs",
}
"""Requirements that no file imports, and why they stand in setup.cfg."""


GIVEN_WITH = {"packaging"}
"""Imported, and always there with pytest."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, dict[str, Requirement]]:
    """Extra name ("" for the plain install) -> distribution name -> requirement."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    parsed = {extra: [Requirement(line) for line in text.split("\n") if line] for extra, text in groups.items()}
    return {extra: {canonical(r.name): r for r in rows} for extra, rows in parsed.items()}


def imported_distributions(sources: list[str], declared: set[str]) -> set[str]:
    """The distributions whose packages are imported in `sources`; where several give a package, the declared one."""
    tops = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                tops.add(node.module.partition(".")[0])
        tops |= set(re.findall(r"importorskip\(\"(\w+)", source))
    tops -= {*sys.stdlib_module_names, *PACKAGES, "tests", "benchmarks"}
    known = packages_distributions()
    givers = {top: {canonical(name) for name in known.get(top, [top])} for top in tops}
    return {name for names in givers.values() for name in (names & declared or names)}


def pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def sources_of(*folders: str) -> list[str]:
    return [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(PACKAGES, ["", "ray", "language"]), (("tests",), ["", "dev"]), (("benchmarks",), ["", "bench"])],
)
def test_every_import_is_declared(folders: tuple[str, ...], extras: list[str]) -> None:
    declared = {name for extra in extras for name in requirements()[extra]}
    missing = imported_distributions(sources_of(*folders), declared) - declared - GIVEN_WITH
    assert not missing, f"imported in {folders}, and not in setup.cfg: {sorted(missing)}"


def test_every_requirement_is_used() -> None:
    declared = {name for group in requirements().values() for name in group}
    used = imported_distributions(sources_of(*PACKAGES, "tests", "benchmarks"), declared)
    unused = declared - used - set(NEEDED_BY_OTHERS)
    assert not unused, f"in setup.cfg, and imported nowhere: {sorted(unused)}"


def test_pins_lie_inside_the_ranges() -> None:
    pinned = pins()
    for group in (requirements()[""], requirements()["dev"]):
        for name, requirement in group.items():
            assert name in pinned, f"{name}: not pinned in constraints.txt"
            assert requirement.specifier.contains(pinned[name]), f"{requirement}: constraints.txt pins {pinned[name]}"


def test_no_place_to_install_from_is_named() -> None:
    for name in ("constraints.txt", "setup.cfg", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        named = re.findall(r"index-url|find-links|file://", text)
        assert not named, f"{name}: {named}: where packages come from is the machine's affair"
