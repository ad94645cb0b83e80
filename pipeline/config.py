"""Strict, frozen configuration: YAML in, typed objects out, and the same YAML back.

Every room declares its own `XConfig(Config)` beside the code that it configures; `pipeline.experiment`
composes them once. Three layers are merged: the defaults of the classes, a YAML file (which may name a
parent with `extends:`), and `a.b=c` words from the command line. Called by every command that takes a config.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(Exception):
    """A mistake of the user's: one line that names the value and the remedy. The commands print it and exit with 2."""


class Config(BaseModel):
    """Base of every config: unknown keys and infinite numbers are errors, instances cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


C = TypeVar("C", bound=Config)


def load_config(path: Path | str, schema: type[C], overrides: Sequence[str] = ()) -> C:
    """Read `path`, follow its `extends:` chain, apply the `a.b=c` overrides, validate against `schema`.

    Raises:
        UserError: missing file, broken YAML, unknown key (with the nearest name), or a value of the wrong kind.
    """
    tree = _read_tree(Path(path), seen=())
    for word in overrides:
        _apply_override(tree, word)
    return parse_config(tree, schema, source=str(path))


def parse_config(tree: Mapping[str, Any], schema: type[C], source: str) -> C:
    """Validate an already merged tree; `source` is named in the errors."""
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(schema, e) for e in error.errors())) from None


def dump_config(config: Config) -> str:
    """The whole resolved config as YAML text; `load_config` of that text gives an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def config_digest(config: Config) -> str:
    """sha256 hex digest of the canonical JSON of `config`: equal configs, equal digests, on every machine."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines such as `unet.channels: 64 -> 128`, one for each leaf in which two dumped configs differ."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """One YAML file with its parents merged under it; `extends:` is relative to the file that says it."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself; remove one of the `extends:` lines")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"{path}: no such config file{hint}")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, this is a {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends is {parent!r}, not the name of one config file")
    return merge_trees(_read_tree(path.parent / parent, (*seen, path.resolve())), tree)


def merge_trees(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, mapping by mapping; any other value of `high` replaces that of `low`.

    So does a mapping of another `kind`: what was said of the one kind means nothing to the other.
    """
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merges = isinstance(value, Mapping) and isinstance(old, Mapping) and not _kinds_differ(old, value)
        merged[key] = merge_trees(old or {}, value) if merges else value
    return merged


def _kinds_differ(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    return "kind" in low and "kind" in high and low["kind"] != high["kind"]


def _apply_override(tree: dict[str, Any], word: str) -> None:
    """Set `a.b=c` in the tree; the value is read as YAML, so numbers, lists and null come out typed."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise UserError(f"{word!r}: an override is written a.b=value")
    *parents, leaf = path.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise UserError(f"{word!r}: {name} is {child!r}, not a group of settings")
        tree = child
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{word!r}: the value is not valid YAML, put it in quotes: {reason}") from None


def _explain(schema: type[BaseModel], error: Any) -> str:
    """One validation error in a user's words, with the near name for a typo."""
    keys = [str(part) for part in error["loc"]]
    where = ".".join(key for key in keys if key not in _union_tags(schema))
    if error["type"] == "extra_forbidden":
        names = {name for model in _models_at(schema, keys[:-1]) for name in model.model_fields}
        near = difflib.get_close_matches(keys[-1], sorted(names), n=1)
        return f"{where}: unknown" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        kinds = sorted(str(model.model_fields["kind"].default) for model in _models_at(schema, keys))
        if error["type"] == "union_tag_not_found":
            return f"{where}: has no kind; add {where}.kind, one of {', '.join(kinds)}"
        near = difflib.get_close_matches(error["ctx"]["tag"], kinds, n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        return f"{where}.kind: {error['ctx']['tag']} is none of {', '.join(kinds)}{remedy}"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error.get("input"), Mapping):  # the whole group: too much for one line
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (got {error.get('input')!r})"


def _models_at(schema: type[BaseModel], keys: Sequence[str]) -> list[type[BaseModel]]:
    """The models that `keys` leads to from `schema` (tags of unions are steps of their own)."""
    models: list[type[BaseModel]] = [schema]
    for key in keys:
        fields = [model.model_fields for model in models]
        inner = [child for f in fields if key in f for child in _models_in(f[key].annotation)]
        tagged = [model for model, f in zip(models, fields, strict=True) if "kind" in f and f["kind"].default == key]
        models = inner or tagged or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model class inside an annotation such as `A | B | None` or `dict[str, A]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models_in(part)]


def _union_tags(schema: type[BaseModel]) -> set[str]:
    """The `kind` values of the tagged unions in `schema`: pydantic reports them as if they were keys."""
    tags: set[str] = set()
    for field in schema.model_fields.values():
        models = _models_in(field.annotation)
        if get_origin(field.annotation) is Union or len(models) > 1:
            tags |= {str(m.model_fields["kind"].default) for m in models if "kind" in m.model_fields}
        for model in models:
            tags |= _union_tags(model)
    return tags
