"""The house keeps its floors: imports only go down, no circles, and each library stays in its room."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source import PACKAGES, ROOT, Module, import_graph, is_inside, modules

FLOORS = (
    ("launch", "pipeline.__main__", "pipeline.commands"),
    ("pipeline.experiment",),
    ("pipeline.roofline",),
    ("pipeline.stages",),
    (
        "data_tools",
        "pipeline.generate",
        "pipeline.export",
        "pipeline.formats",
        "pipeline.plan",
        "pipeline.doctor",
        "pipeline.pyfunc",
    ),
    ("pipeline.trainer", "pipeline.health", "pipeline.pace", "pipeline.models"),
    (
        "pipeline.data",
        "pipeline.checkpoint",
        "pipeline.tracking",
        "pipeline.evaluate",
        "pipeline.quantizers",
    ),
    ("pipeline.distributed", "pipeline.diffusion", "pipeline.losses", "pipeline.optim"),
    (
        "pipeline.config",
        "pipeline.randomness",
        "pipeline.storage",
        "pipeline.torchvision_shim",
        "pipeline.command_line",
        "pipeline.redact",
        "pipeline.run_folder",
        "pipeline.retry",
    ),
)
"""Top to bottom. A module may import from its own floor and from those below."""

LIBRARY_ROOMS = {
    "deepspeed": ("pipeline.distributed", "pipeline.checkpoint"),
    "mlflow": ("pipeline.tracking",),
    "webdataset": ("pipeline.data", "data_tools"),
    "accelerate": ("pipeline.distributed",),
    "ray": ("data_tools",),
}
"""A library of this table may be imported in these rooms alone."""

NEVERS = {
    "pipeline.trainer": ("pipeline.stages", "pipeline.models"),
    "pipeline.stages": ("pipeline.tracking",),
    "pipeline": ("data_tools", "launch"),
}
"""What a room never imports, beyond what its floor forbids."""

ENGINE_BLIND = ("pipeline.models", "pipeline.diffusion", "pipeline.losses", "pipeline.quantizers")
"""Mathematics: of `pipeline.distributed` these rooms may know the collectives, and no engine."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
HEAVY = ("mlflow", "deepspeed", "open_clip", "torchvision", "matplotlib", "webdataset", "ray", "pandas", "cv2")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def floor_of(name: str) -> int | None:
    """The floor of a module, 0 at the bottom: the lowest that names it or a package around it."""
    for height, rooms in enumerate(reversed(FLOORS)):
        if is_inside(name, *rooms):
            return height
    return None


def violations(check: str, found: list[str]) -> None:
    assert not found, f"{check}:\n  " + "\n  ".join(found)


def test_every_module_has_a_floor() -> None:
    violations("give it a floor in FLOORS", [n for n in modules() if n != "pipeline" and floor_of(n) is None])


def test_imports_only_go_down() -> None:
    violations(
        "imports upwards",
        [
            f"{name} -> {target}"
            for name, targets in import_graph().items()
            for target in targets
            if target != "pipeline" and name != "pipeline" and (floor_of(target) or 0) > (floor_of(name) or 0)
        ],
    )


def test_no_circles() -> None:
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail("circle: " + " -> ".join(error.args[1]))


def test_libraries_stay_in_their_rooms() -> None:
    violations(
        "library outside its room",
        [
            f"{module.name} imports {target}"
            for module in modules().values()
            for target in module.imports
            for library, rooms in LIBRARY_ROOMS.items()
            if is_inside(target, library) and not is_inside(module.name, *rooms)
        ],
    )


def test_rooms_that_never_meet() -> None:
    violations(
        "never imports",
        [
            f"{name} -> {target}"
            for name, targets in import_graph().items()
            for target in targets
            for room, forbidden in NEVERS.items()
            if is_inside(name, room) and is_inside(target, *forbidden)
        ],
    )


def test_mathematics_knows_no_engine() -> None:
    violations(
        "knows an engine",
        [
            f"{name} -> {target}"
            for name, targets in import_graph().items()
            for target in targets
            if is_inside(name, *ENGINE_BLIND)
            and is_inside(target, "pipeline.distributed")
            and target not in ("pipeline.distributed", "pipeline.distributed.process")
        ],
    )


def test_no_vague_file_names() -> None:
    violations("say what it holds", [n for n in modules() if VAGUE_NAMES & set(n.split("."))])


def test_no_two_test_files_of_one_name() -> None:
    """pytest imports them by that name alone, and two of them end the collection of all."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    violations("rename one", sorted({name for name in names if names.count(name) > 1}))


@pytest.mark.parametrize("module", modules().values(), ids=modules())
def test_module_is_documented_and_small(module: Module) -> None:
    found = [] if ast.get_docstring(module.tree) else ["the module has no docstring"]
    lines = len(module.text.splitlines())
    found += [f"{lines} lines, more than {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            found += [f"{node.name}: {length} lines, more than {MAX_FUNCTION_LINES}"] * (length > MAX_FUNCTION_LINES)
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found += [] if ast.get_docstring(node) else [f"{node.name}: public and without docstring"]
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Config") for base in node.bases):
            found += undocumented_fields(node)
    violations(str(module.path.relative_to(ROOT)), found)


def undocumented_fields(node: ast.ClassDef) -> list[str]:
    """The fields of a config class without a docstring under them."""
    found = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        is_field = isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation)
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if is_field and not is_text:
            found.append(f"{node.name}.{ast.unparse(statement.target)}: a setting without a docstring under it")
    return found


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that imports from the checkout and stands in the empty folder `cwd`."""
    prefix = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.dont_write_bytecode = True\n"
    return subprocess.run([sys.executable, "-c", prefix + code], cwd=cwd, capture_output=True, text=True, check=False)


def test_importing_the_experiment_touches_nothing(tmp_path: Path) -> None:
    result = run_python(
        "import os, threading\n"
        "before = dict(os.environ)\n"
        "import pipeline.experiment, torch\n"
        "assert dict(os.environ) == before, 'environment changed'\n"
        "assert not torch.cuda.is_initialized(), 'device touched'\n"
        "assert not torch.distributed.is_initialized(), 'process group started'\n"
        "assert threading.active_count() == 1, threading.enumerate()\n",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize("entry", ["pipeline.experiment", *(f"{package}.__main__" for package in PACKAGES)])
def test_entries_import_nothing_heavy(entry: str, tmp_path: Path) -> None:
    heavy = HEAVY if entry == "pipeline.experiment" else (*HEAVY, "torch", "numpy")
    result = run_python(f"import {entry}; print(*sorted(set({heavy!r}) & set(sys.modules)))", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
