from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmquant.errors import RecipeError, UsageError
from glmquant.glm4_moe import Role
from glmquant.recipe import (
    DEFAULT_RECIPE,
    QUANTIZABLE_ROLES,
    Recipe,
    list_recipes,
    load_recipe,
    recipe_dir,
    recipe_path,
)
from glmquant.schemes import Scheme

RULES = """\
rules:
  - roles: [attention_qkv, routed_expert]
    scheme: W8A8_DYNAMIC
  - roles: [mtp, router]
    scheme: FLOAT
"""
GOOD = "name: mine\n" + RULES


def load(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(str(path))


def mistake(folder: Path, text: str | bytes) -> tuple[str | None, str | None, str | None]:
    """Place, expectation and finding of the error; the place without the folder."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text)
    error = caught.value
    return (error.where or "").removeprefix(f"{folder}/"), error.expected, error.found


def scheme_of(recipe: Recipe, role: Role) -> Scheme | None:
    rule = recipe.rule_of(role)
    return rule.scheme if rule else None


def test_a_recipe_file_says_what_each_role_becomes(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert (recipe.name, recipe.summary) == ("mine", "")
    assert {role.value: scheme_of(recipe, role) for role in Role if recipe.rule_of(role)} == {
        "attention_qkv": Scheme.W8A8_DYNAMIC,
        "routed_expert": Scheme.W8A8_DYNAMIC,
        "mtp": Scheme.FLOAT,
        "router": Scheme.FLOAT,
    }


def test_the_first_rule_that_names_a_role_decides(tmp_path: Path) -> None:
    text = GOOD.replace("mtp,", "attention_qkv, dense_mlp,")
    text += "  - {roles: [dense_mlp], scheme: W8A8_DYNAMIC}\n"
    recipe = load(tmp_path, text)
    assert scheme_of(recipe, Role.ATTENTION_QKV) is Scheme.W8A8_DYNAMIC
    assert scheme_of(recipe, Role.DENSE_MLP) is Scheme.FLOAT


@pytest.mark.parametrize(
    ("text", "line", "key", "found"),
    [
        (GOOD + "group_size: 32\n", 7, "group_size", "'32'"),
        (GOOD + "    group: 3\n", 7, "rules.1.group", "'3'"),
        (GOOD.replace("scheme: FLOAT", "schema: FLOAT"), 6, "rules.1.schema", "'FLOAT'"),
        (GOOD.replace("mtp", "mpt"), 5, "rules.1.roles.0", "'mpt'"),
        (GOOD.replace("router]", "4]"), 5, "rules.1.roles.1", "'4'"),
        (GOOD.replace("[mtp, router]", "mtp"), 5, "rules.1.roles", "'mtp'"),
        (GOOD.replace("[mtp, router]", "[]"), 5, "rules.1.roles", "[]"),
        (GOOD.replace("W8A8_DYNAMIC", "W4A8"), 4, "rules.0.scheme", "'W4A8'"),
        (GOOD.replace("W8A8_DYNAMIC", "W8A8"), 4, "rules.0.scheme", "'W8A8'"),
        (GOOD.replace("FLOAT", "float"), 6, "rules.1.scheme", "'float'"),
        ("name: a\nrules:\n  - scheme: FLOAT\n", 3, "rules.0.roles", "'no such key'"),
        ("name: mine\nrules: []\n", 2, "rules", "[]"),
        ("name: mine\nrules:\n", 2, "rules", "''"),
        ("name: mine\nrules: {mtp: FLOAT}\n", 2, "rules", "{'mtp': 'FLOAT'}"),
        ("name: mine\nrules:\n  - mtp\n", 3, "rules.0", "'mtp'"),
        ("name: mine\n", 1, "rules", "'no such key'"),
        ("\n\n" + GOOD.replace("mine", "../mine"), 3, "name", "'../mine'"),
        (GOOD.replace("mine", "1.0"), 1, "name", "'1.0'"),
        (GOOD + "summary: [a]\n", 7, "summary", "['a']"),
        ("", 1, "the whole file", "None"),
        ("# nothing\n", 1, "the whole file", "None"),
        ("- roles: [mtp]\n", 1, "the whole file", "[{'roles': ['mtp']}]"),
        ("w8a8\n", 1, "the whole file", "'w8a8'"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_error_with_its_line_and_its_key(
    tmp_path: Path, text: str, line: int, key: str, found: str
) -> None:
    where, expected, what = mistake(tmp_path, text)
    assert (where, what) == (f"mine.yaml, line {line}: {key}", found)
    assert expected


@pytest.mark.parametrize("key", ["7", "true"])
def test_a_key_that_is_no_text_is_an_error_with_its_line_and_its_key(
    tmp_path: Path, key: str
) -> None:
    where, _, _ = mistake(tmp_path, f"{GOOD}{key}: x\n")
    assert where == f"mine.yaml, line 7: {key}"


@pytest.mark.parametrize("role", sorted(set(Role) - QUANTIZABLE_ROLES))
def test_int8_for_a_role_that_the_engine_reads_as_float_is_an_error(
    tmp_path: Path, role: Role
) -> None:
    text = GOOD.replace("attention_qkv, routed_expert", f"routed_expert,\n    {role.value}")
    assert mistake(tmp_path, text) == (
        "mine.yaml, line 4: rules.0.roles.1",
        "FLOAT; W8A8_DYNAMIC is for attention_out, attention_qkv, dense_mlp, routed_expert, "
        "shared_expert",
        repr(role.value),
    )


@pytest.mark.parametrize("role", sorted(QUANTIZABLE_ROLES))
def test_int8_for_every_linear_of_the_decoder_layers_is_allowed(tmp_path: Path, role: Role) -> None:
    recipe = load(tmp_path, GOOD.replace("attention_qkv", role.value))
    assert scheme_of(recipe, role) is Scheme.W8A8_DYNAMIC


def test_what_may_become_int8_are_the_linears_of_the_decoder_layers() -> None:
    names = ("attention_qkv", "attention_out", "dense_mlp", "routed_expert", "shared_expert")
    assert {role.value for role in QUANTIZABLE_ROLES} == set(names)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (GOOD + "name: other\n", 7, "name"),
        (GOOD + "rules: []\n", 7, "rules"),
        (GOOD + "    scheme: W8A8_DYNAMIC\n", 7, "scheme"),
    ],
)
def test_a_key_that_stands_twice_is_an_error(
    tmp_path: Path, text: str, line: int, key: str
) -> None:
    assert mistake(tmp_path, text) == (
        f"mine.yaml, line {line}: {key}",
        "each key once, a text",
        "the key again",
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace("    scheme", "\tscheme"), ", line 4"),
        ("name: [\n", ", line 2"),
        ("name: 'mine\n", ", line 2"),
        (GOOD + "---\n" + GOOD, ", line 7"),
        (GOOD + "? [a]\n: b\n", ", line 7"),
        ("name: *unknown\n", ", line 1"),
        ("name: !!python/object:os.system mine\n", ", line 1"),
        (b"\x7fELF\x02\x01\x00\x00", ""),
        (b"name: \xff\xfe\n", ""),
        ("name: " + "[" * 5000, ""),
        ("summary: 2024-13-45\n" + GOOD, ""),
        ("summary: !!int x\n" + GOOD, ""),
        ("name: mine\nrules: &rules [*rules]\n", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_is_no_yaml_is_an_error_with_its_line_where_known(
    tmp_path: Path, text: str | bytes, line: str
) -> None:
    where, _, found = mistake(tmp_path, text)
    assert (where or "").startswith(f"mine.yaml{line}")
    assert found


@pytest.mark.parametrize("name", ["w8a9", "", "missing/mine.yaml", "a" * 300])
def test_an_unknown_name_is_wrong_usage_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(name)
    assert caught.value.where == name
    assert caught.value.expected == "one of w8a8, w8a8-full, w8a8-mse, or the path of a YAML file"


def test_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(tmp_path))
    assert caught.value.found == "a folder"


def test_an_existing_file_beats_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path(DEFAULT_RECIPE) == recipe_dir() / "w8a8.yaml"
    (tmp_path / DEFAULT_RECIPE).write_text(GOOD)
    assert load_recipe(DEFAULT_RECIPE).name == "mine"


@pytest.mark.parametrize(
    "change",
    [
        ("mine", "other"),
        ("rules:", "summary: for a test # a comment\nrules:"),
        ("attention_qkv, routed_expert", "routed_expert, attention_qkv, routed_expert"),
        ("mtp,", "attention_qkv, mtp,"),
    ],
)
def test_the_digest_tells_what_is_decided_and_not_how_it_is_said(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    assert load(tmp_path, GOOD.replace(*change)).digest() == load(tmp_path, GOOD).digest()


@pytest.mark.parametrize(
    "change",
    [
        ("mtp, ", ""),
        ("mtp,", "mtp, norm,"),
        ("W8A8_DYNAMIC", "FLOAT"),
        ("W8A8_DYNAMIC", "W8A8_DYNAMIC\n    scale: mse"),
    ],
)
def test_another_decision_gives_another_digest(tmp_path: Path, change: tuple[str, str]) -> None:
    assert load(tmp_path, GOOD.replace(*change)).digest() != load(tmp_path, GOOD).digest()


def test_the_recipes_that_come_along_are_three_the_default_first() -> None:
    names = [recipe.name for recipe in list_recipes()]
    assert names == [DEFAULT_RECIPE, "w8a8-full", "w8a8-mse"]
    assert len({recipe.digest() for recipe in list_recipes()}) == 3


def test_the_plain_scale_may_be_named_and_is_the_default(tmp_path: Path) -> None:
    named = GOOD.replace("W8A8_DYNAMIC", "W8A8_DYNAMIC\n    scale: absmax")
    assert load(tmp_path, named).digest() == load(tmp_path, GOOD).digest()


def test_a_search_for_the_scales_of_what_has_none_is_a_mistake(tmp_path: Path) -> None:
    text = GOOD + "    scale: mse\n"
    assert mistake(tmp_path, text) == (
        "mine.yaml, line 7: rules.1.scale",
        "absmax, or nothing: FLOAT has no scales to search",
        "'mse'",
    )


@pytest.mark.parametrize(
    ("name", "int8"),
    [
        ("w8a8", {"attention_qkv", "attention_out", "routed_expert"}),
        ("w8a8-mse", {"attention_qkv", "attention_out", "routed_expert"}),
        ("w8a8-full", {role.value for role in QUANTIZABLE_ROLES}),
    ],
)
def test_a_built_in_recipe_names_every_role_once_and_no_layer(name: str, int8: set[str]) -> None:
    path = recipe_path(name)
    fields: dict[str, Any] = yaml.safe_load(path.read_text())
    named = [role for rule in fields["rules"] for role in rule["roles"]]
    assert sorted(named) == sorted(role.value for role in Role)
    recipe = load_recipe(name)
    assert recipe.name == path.stem == name
    assert {role for role in named if scheme_of(recipe, Role(role)) is not Scheme.FLOAT} == int8
    statements = re.sub("#.*", "", path.read_text())
    assert set(re.findall(r"\w*\d\w*", statements)) <= {"w8a8", "W8A8_DYNAMIC", "int8", "BF16"}
