"""Writes docs/recipes.md: every key of a recipe with type, default, meaning and what the published recipes set.

    make reference

Meanings are the comments beside the fields of the config classes and the docstrings of these classes, so that they are
written once; tests/test_reference.py compares the page with them.
"""

import ast
import inspect
import io
import pathlib
import sys
import textwrap
import tokenize
import types
import typing
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from distill.catalogue import MODELS  # noqa: E402
from distill.config import read_recipe  # noqa: E402
from distill.recipe import Recipe  # noqa: E402

PAGE = ROOT / "docs/recipes.md"
# Recipes after papers have the name of their model alone; others were not published with their tower.
KINDS = {kind for config in MODELS for kind in typing.get_args(config.model_fields["kind"].annotation)}
PUBLISHED = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.stem in KINDS)
Seen = dict[type[BaseModel], str]  # where in a recipe a class stands
Published = dict[tuple[str, str], list[tuple[str, str]]]  # (key, kind of model) -> recipes and their values
SHOWN = 3  # values of published recipes that a row names
HEAD = """# Recipes: every key

This page is written by `make reference` from the recipe tree and kept true by a test; do not edit it.

A recipe is one YAML file, read strictly: an unknown key, a missing one or a wrong type is an error that names the key.
`extends: other.yaml` starts from another recipe; `section.key=value` on the command line changes one value.
`recipes/teachclip.yaml` is a small whole one. *Published*: the values that recipes after papers (`recipes/<dataset>/`)
set, where they are not the default.
"""


def page() -> str:
    """Return the whole page."""
    seen: Seen = {}
    return HEAD + "".join(_sections(Recipe, "", seen, _published()))


def _sections(model: type[BaseModel], prefix: str, seen: Seen, published: Published) -> list[str]:
    """Return a section for this part of the tree and one for each part below it, each class once."""
    seen[model] = prefix
    kind = model.model_fields.get("kind")
    title = f"`{prefix.rstrip('.')}`" if prefix else "The top level"
    if kind is not None and typing.get_origin(kind.annotation) is typing.Literal and kind.is_required():
        title += f" with `kind: {typing.get_args(kind.annotation)[0]}`"
    meanings = comments(model)
    rows, below = [], []
    for name, field in model.model_fields.items():
        parts = _models(field.annotation)
        for part in parts:
            if part not in seen:
                below += _sections(part, f"{prefix}{name}.", seen, published)
        value = f"see {_links(parts, seen)}" if parts else _type(field.annotation)
        used = "" if parts or name == "kind" else _set_by(published, prefix + name, _default(field, parts), kind)
        cells = [f"`{name}`", value, _default(field, parts), meanings.get(name, ""), used]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    text = textwrap.dedent(inspect.getdoc(model) or "")
    table = "\n".join(["| key | type | default | meaning | published |", "|---|---|---|---|---|", *rows])
    return [f"\n## {title}\n\n{text}\n\n{table}\n", *below]


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comment that stands beside each field of a class, its own and inherited ones."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.line.lstrip().startswith("#")
        }
        for node in ast.parse(source).body[0].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                beside = [lines[line] for line in range(node.lineno, node.end_lineno + 1) if line in lines]
                if beside:
                    found[node.target.id] = " ".join(beside)
    return found


def _published() -> Published:
    """Return, by dotted key and kind of model, each published recipe's name and resolved value."""
    found: Published = {}

    def walk(tree: dict[str, Any], prefix: str, kind: str, recipe: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.", kind, recipe)
            else:
                found.setdefault((prefix + key, kind), []).append((recipe, f"`{_value(value)}`"))

    for path in PUBLISHED:
        recipe = read_recipe(path, [], Recipe)
        walk(recipe.model_dump(mode="json"), "", recipe.model.kind, f"{path.parent.name}/{path.stem}")
    return found


def _set_by(published: Published, key: str, default: str, kind: FieldInfo | None) -> str:
    """Return the values other than the default that published recipes set, the most frequent first."""
    if key in ("name", "out") or key.startswith(("data.train", "data.val", "data.test", "labels")):
        return ""
    kinds = typing.get_args(kind.annotation) if kind is not None and key.startswith("model.") else None
    by_value: dict[str, list[str]] = {}
    for (other, model), rows in published.items():
        if other == key and (kinds is None or model in kinds):
            for recipe, value in rows:
                by_value.setdefault(value, []).append(recipe)
    by_value.pop(default, None)
    values = sorted(by_value.items(), key=lambda item: -len(item[1]))
    named = [f"{value} in {len(by)}" if len(by) > 2 else f"{value} ({', '.join(by)})" for value, by in values]
    more = f", and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + more


def _links(parts: list[type[BaseModel]], seen: Seen) -> str:
    return "below" if len(parts) > 1 else f"`{seen[parts[0]].rstrip('.')}`"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the config classes that an annotation names."""
    found, queue = [], [annotation]
    while queue:
        current = queue.pop(0)
        if isinstance(current, type) and issubclass(current, BaseModel):
            found.append(current)
        queue.extend(getattr(current, "__args__", ()))
    return found


def _type(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in args)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("`null`" if arg is type(None) else _type(arg) for arg in args)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin in (list, tuple):
        return "list of " + _type(args[0])
    return {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`"}[annotation.__name__]


def _default(field: FieldInfo, parts: list[type[BaseModel]]) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if parts and value is not None and value != [] else f"`{_value(value)}`"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
