"""The strict reader: one YAML file -> one frozen pydantic tree, or one line that says what is wrong.

`extends: other.yaml` is merged first (paths inside a recipe stay relative to the working directory, `extends` to the
file itself), then `section.key=value` overrides, which are parsed as YAML too. Everything then passes through the same
validation: unknown keys, wrong types and missing keys are errors with their path. Recipes that come with the project
are found under their names, `recipes/...`, from any directory.
"""

import difflib
import logging
import os
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from distill.deprecation import renamed
from distill.errors import ArtefactError, RecipeError, check_regular

Tree = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent  # a clone, or site-packages
# PyYAML raises these for text that is not YAML, or that contradicts its tag: `2001-99-99`, `!!int x`, `!!bool x`.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
FRACTION = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]{1,4})?")
LONGEST_PATH = 4096  # characters, as operating systems limit it
LONGEST_SHOWN = 300  # characters of anything that an error repeats
_SHOWER = reprlib.Repr()
_SHOWER.maxstring = _SHOWER.maxother = _SHOWER.maxlong = LONGEST_SHOWN
_SHOWER.maxlist = _SHOWER.maxdict = 10
log = logging.getLogger(__name__)


class Config(BaseModel):
    """Base of every recipe part: frozen, strict, and closed to unknown keys.

    `old_keys` of a whole recipe maps dotted keys of the version before to those of now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    old_keys: ClassVar[dict[str, str]] = {}


C = TypeVar("C", bound=Config)


def packaged(path: str | Path, folder: str | Path = "") -> Path:
    """Return `path` inside `folder` if it exists, else the file or folder of that name that comes with the project.

    Only names that begin with `recipes/` come with the project; any other is returned as it stands.
    """
    here, own = Path(folder) / path, ROOT / path
    comes = Path(path).parts[:1] == ("recipes",) and os.path.exists(own)
    return own if comes and not os.path.exists(here) else here


def read_recipe(path: str | Path, overrides: Sequence[str], root: type[C]) -> C:
    """Read a recipe, what it extends and the overrides, and validate the result as `root`."""
    tree = read_tree(packaged(path), root.old_keys)
    for override in overrides:
        tree = _merge(tree, _with_new_keys(_parse_override(override), root.old_keys, override))
    return validate(tree, root, where=str(path))


def validate(tree: Tree, root: type[C], *, where: str) -> C:
    """Turn a plain tree into a `root`, or raise `RecipeError` naming the first bad key."""
    if key := _with_nul(tree):
        raise RecipeError(f"{where}: {key}: holds a NUL character, which no name can; delete it")
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, tree, root)}") from None


def dump_recipe(recipe: Config) -> str:
    """Return the resolved recipe as YAML that `read_recipe` reads back to an equal tree."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """A YAML loader of plain values: no aliases (one may stand for billions of values), no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name); write its value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice, times = keys.most_common(1)[0] if keys else ("", 1)
        if times > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a decimal number; YAML 1.1 has others that look like one (`010` is 8, `1:30` is 90, `1_0` is 10)."""
        text = self.construct_scalar(node)
        if WHOLE.fullmatch(text):
            return int(text)
        if FRACTION.fullmatch(text) or text.lstrip("+-").lower() in (".inf", ".nan"):
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        raise yaml.constructor.ConstructorError(
            None, None, f"{text} is no decimal number; write one, or quote it as text", node.start_mark
        )


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def read_tree(path: Path, old_keys: Mapping[str, str], seen: tuple[Path, ...] = ()) -> Tree:
    """Read a recipe with what it extends, not yet validated; `seen` are the recipes that extend it."""
    if Path(os.path.realpath(path)) in seen:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(str(p) for p in seen)}")
    by = f" (extended by {seen[-1]})" if seen else ""
    try:
        check_regular(path)
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except ArtefactError as error:
        raise RecipeError(f"{error}{by}") from None
    except FileNotFoundError:
        raise RecipeError(f"{path}{by}: no such recipe; recipes/ holds the ones that come with the project") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}{by}: cannot be read: {error}") from None
    except NOT_YAML as error:
        raise RecipeError(f"{path}: not valid YAML: {_short(str(error))}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a mapping of sections at the top, found {type(tree).__name__}")
    tree = _with_new_keys(tree, old_keys, str(path))
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str) or "\0" in parent or len(parent) > LONGEST_PATH:
        raise RecipeError(f"{path}: extends: expected the path of a recipe, found {_SHOWER.repr(parent)}")
    return _merge(read_tree(packaged(parent, path.parent), old_keys, (*seen, Path(os.path.realpath(path)))), tree)


def _with_new_keys(tree: Tree, old_keys: Mapping[str, str], where: str) -> Tree:
    """Move values from old keys to new ones, with a notice; file by file, so that the later one still wins."""
    for old, new in old_keys.items():
        section, found = tree, old.split(".")
        for part in found[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        key = new.rpartition(".")[2]
        if isinstance(section, dict) and found[-1] in section and key not in section:
            section[key] = section.pop(found[-1])
            log.warning("%s: %s", where, renamed(old, new))
    return tree


def _merge(base: Tree, over: Tree) -> Tree:
    """Merge mappings key by key, unless they are of different `kind`; replace anything else."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind"))
        merged[key] = _merge(old, value) if same_kind else value
    return merged


def _parse_override(text: str) -> Tree:
    path, equals, value = text.partition("=")
    if not equals or not path or any(not part for part in path.split(".")):
        raise RecipeError(f"override {text!r}: expected section.key=value, e.g. optim.lr=0.001")
    try:
        tree = yaml.load(value, _Loader)
    except NOT_YAML as error:
        why = f": {error.problem}" if isinstance(error, yaml.MarkedYAMLError) else ""
        raise RecipeError(f"override {_short(text)!r}: {_short(value)!r} is not valid YAML{why}") from None
    for part in reversed(path.split(".")):
        tree = {part: tree}
    return tree


def _explain(error: ValidationError, tree: Tree, root: type[BaseModel]) -> str:
    """Return the first problem as `key: found, expected, nearest key`; count the others."""
    problems = error.errors()
    problem = problems[0]
    keys = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    path = ".".join(_short(str(part)) for part in keys) or "recipe"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    found = problem.get("input")
    if problem["type"] == "extra_forbidden":
        siblings = _siblings(root, keys)
        close = difflib.get_close_matches(str(keys[-1]), siblings, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"valid keys here: {', '.join(siblings)}"
        return f"{path}: unknown key; {hint}{more}"
    if problem["type"] == "missing":
        return f"{path}: missing; add it to the recipe or give {path}=VALUE on the command line{more}"
    if problem["type"] == "value_error":
        return f"{path}: {problem['ctx']['error']}{more}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: found {_SHOWER.repr(found)}, {message}{_advice(found)}{more}"


def _with_nul(tree: Any, path: str = "") -> str | None:
    """Return the first key whose text holds a NUL character."""
    if isinstance(tree, str):
        return path if "\0" in tree else None
    if isinstance(tree, dict):
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in tree.items()]
    else:
        items = [(path, value) for value in tree] if isinstance(tree, list) else []
    return next((found for key, value in items if (found := _with_nul(value, key))), None)


def _siblings(root: type[BaseModel], keys: Sequence[Any]) -> list[str]:
    """Return the valid names beside the last of `keys`; of a union by `kind`, those of the member that `keys` names."""
    models: list[type[BaseModel]] = [root]
    for key in keys[:-1]:
        models = [m for model in models for m in _models_under(model, key)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models_under(model: type[BaseModel], key: Any) -> list[type[BaseModel]]:
    field = model.model_fields.get(str(key))
    if field is None:
        kind = model.model_fields.get("kind")
        return [model] if kind is not None and str(key) in str(kind.annotation) else []
    found, queue = [], [field.annotation]
    while queue:
        annotation = queue.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        queue.extend(getattr(annotation, "__args__", ()))
    return found


def _advice(found: Any) -> str:
    """Return how to write a number, like 1e-4, that YAML reads as text."""
    if not isinstance(found, str):
        return ""
    try:
        float(found)
    except ValueError:
        return ""
    mantissa, e, exponent = found.lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    number = f"{mantissa}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if e else mantissa
    return f"; YAML reads {found} as text: write {number}"
