"""The source tree as data: modules and what they import. Read by the tests that keep the house in order."""

import ast
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "data_tools", "launch")


@dataclass(frozen=True)
class Module:
    """One Python file of the packages."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        """The source."""
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[str]:
        """Dotted names of everything imported anywhere in the file; `from a import b` gives `a.b`."""
        found: list[str] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: relative import; write the whole name"
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return found


@lru_cache
def modules() -> dict[str, Module]:
    """Every module of the packages by its dotted name; a package stands under its own name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path)
    return found


def is_inside(name: str, *places: str) -> bool:
    """True when the dotted `name` is one of `places` or lies inside one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


@lru_cache
def import_graph() -> dict[str, frozenset[str]]:
    """For each module the modules of our own that it imports."""
    known = modules()

    def owner(target: str) -> str:
        while target and target not in known:
            target = target.rpartition(".")[0]
        return target

    return {name: frozenset(owner(target) for target in module.imports) - {"", name} for name, module in known.items()}
