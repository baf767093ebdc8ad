"""Recipes: YAML data that say which scheme each role gets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmquant.errors import RecipeError, UsageError
from glmquant.glm4_moe import Role
from glmquant.schemes import ScaleChoice, Scheme

DEFAULT_RECIPE: Final = "w8a8"

QUANTIZABLE_ROLES: Final = frozenset(
    {
        Role.ATTENTION_QKV,
        Role.ATTENTION_OUT,
        Role.DENSE_MLP,
        Role.ROUTED_EXPERT,
        Role.SHARED_EXPERT,
    }
)
"""Linears that vllm-ascend looks up in the description. ``eh_proj``, the router, the embedding and
the head are none of them, and an int8 MTP layer accepts no token."""


class Rule(BaseModel):
    """One rule: these roles get this scheme, their scales chosen so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    scheme: Scheme
    scale: ScaleChoice = ScaleChoice.ABSMAX


class Recipe(BaseModel):
    """What each role becomes. The first rule that names a role decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    summary: str = ""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    def rule_of(self, role: Role) -> Rule | None:
        """The rule of a role, or None where none names it."""
        return next((rule for rule in self.rules if role in rule.roles), None)

    @property
    def is_searched(self) -> bool:
        """Some scales are searched, which takes several times as long."""
        return any(rule.scale is not ScaleChoice.ABSMAX for rule in self.rules)

    def digest(self) -> str:
        """SHA-256 of what the recipe decides; its name and comments do not count."""
        rules = {role.value: rule for role in Role if (rule := self.rule_of(role))}
        decided = {role: [rule.scheme.value, rule.scale.value] for role, rule in rules.items()}
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def recipe_dir(kind: str = "quant") -> Path:
    """The folder of data that comes with glmquant, installed or in a checkout.

    Args:
        kind: ``quant`` for recipes, ``serve`` for what ``glmquant serve`` knows, ``eval`` for
            published results.
    """
    package = Path(__file__).parent
    installed = package / "recipes" / kind
    return installed if installed.is_dir() else package.parent / "recipes" / kind


def list_recipes() -> list[Recipe]:
    """The recipes that come with glmquant, the default first."""
    recipes = [load_recipe(str(path)) for path in sorted(recipe_dir().glob("*.yaml"))]
    return sorted(recipes, key=lambda recipe: recipe.name != DEFAULT_RECIPE)


_EXPECTED: Final = {
    "missing": "this key",
    "extra_forbidden": "no such key; name, summary and rules, or roles, scheme and scale",
    "model_type": "keys and values",
    "tuple_type": "a list",
    "string_type": "a text",
    "too_short": "at least one",
}
"""What pydantic's kinds of mistakes ask for, in words for who writes YAML."""


def default_recipe() -> Recipe:
    """The recipe that is meant where none is named, whatever files lie about."""
    return load_recipe(str(recipe_dir() / f"{DEFAULT_RECIPE}.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe named by path or by name; an existing file beats a name.

    Raises:
        UsageError: Neither a file nor a known name.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else "no file and no known name"
    except (OSError, ValueError) as error:  # a name that no file can have
        found = str(error)
    known = sorted(path.stem for path in recipe_dir().glob("*.yaml"))
    if name in known:
        return recipe_dir() / f"{name}.yaml"
    raise UsageError(
        "no such recipe",
        where=name,
        expected=f"one of {', '.join(known)}, or the path of a YAML file",
        found=found,
        hint="glmquant recipes",
    )


def load_recipe(name: str) -> Recipe:
    """A recipe by name or path.

    Args:
        name: ``w8a8``, ``w8a8-full``, or the path of a YAML file.

    Returns:
        The checked recipe.

    Raises:
        UsageError: There is no such recipe.
        RecipeError: The file is wrong; says the line and the key.
    """
    path = recipe_path(name)
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_keys(path, tree, set())
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise RecipeError(
            "a recipe cannot be read",
            where=f"{path}" + (f", line {mark.line + 1}" if mark else ""),
            expected="YAML in UTF-8",
            found=getattr(error, "problem", None) or str(error) or type(error).__name__,
            hint="glmquant recipes w8a8 shows one that is right",
        ) from error
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # A key that is misspelt is both unknown and missing: the unknown one is in the file.
        unknown = [each for each in mistakes if each["type"] == "extra_forbidden"]
        first = (unknown or mistakes)[0]
        expected = _EXPECTED.get(first["type"], first["msg"])
        found = "no such key" if first["type"] == "missing" else first["input"]
        raise _mistake(path, tree, first["loc"], expected, found) from error
    for number, rule in enumerate(recipe.rules):
        refused = [role for role in rule.roles if role not in QUANTIZABLE_ROLES]
        if rule.scheme is not Scheme.FLOAT and refused:
            place = ("rules", number, "roles", rule.roles.index(refused[0]))
            allowed = ", ".join(sorted(role.value for role in QUANTIZABLE_ROLES))
            raise _mistake(path, tree, place, f"FLOAT; {rule.scheme.value} is for {allowed}", None)
        if rule.scheme is Scheme.FLOAT and rule.scale is not ScaleChoice.ABSMAX:
            expected = "absmax, or nothing: FLOAT has no scales to search"
            raise _mistake(path, tree, ("rules", number, "scale"), expected, None)
    return recipe


def _check_keys(path: Path, node: Any, walked: set[int]) -> None:
    """Keys are texts and stand once; YAML itself would let the last of two win."""
    if id(node) in walked:
        return
    walked.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(path, value, walked)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            is_text = key.tag == "tag:yaml.org,2002:str"
            if not is_text or key.value in seen:
                raise RecipeError(
                    "a recipe has a key twice" if is_text else "a key of a recipe is not a text",
                    where=f"{path}, line {key.start_mark.line + 1}: {key.value}",
                    expected="each key once, a text",
                    found="the key again" if is_text else key.tag.rpartition(":")[2],
                    hint="glmquant recipes w8a8 shows one that is right",
                )
            seen.add(key.value)
            _check_keys(path, value, walked)


def _mistake(
    path: Path, tree: Any, place: tuple[int | str, ...], expected: str, found: object
) -> RecipeError:
    line, node = _locate(tree, place)
    value = node.value if isinstance(node, yaml.ScalarNode) else found
    return RecipeError(
        "a recipe is wrong",
        where=f"{path}, line {line}: {'.'.join(map(str, place)) or 'the whole file'}",
        expected=expected,
        found=repr(value)[:120],
        hint="glmquant recipes w8a8 shows one that is right",
    )


def _locate(tree: Any, place: tuple[int | str, ...]) -> tuple[int, Any]:
    """The line of a key or item, or of the nearest thing around it, and its node."""
    line = tree.start_mark.line + 1 if tree is not None else 1
    node = tree
    for step in place:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == step]
            if not pairs:
                return line, None
            key, node = pairs[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                return line, None
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line, node
