"""The data of serve: whole, sourced, and without what is dead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from glmquant.cli.serve import MACHINES as NAMED_MACHINES
from glmquant.cli.serve import PROFILES as NAMED_PROFILES
from glmquant.deploy.choose import profile_names
from glmquant.deploy.data import (
    EngineData,
    Profile,
    Spelling,
    load,
    load_engine,
    load_profile,
    load_targets,
    serve_dir,
)
from glmquant.errors import RecipeError
from glmquant.machines import GPU_MEMORY_UTILIZATION, MACHINES
from glmquant.verify.engines.predict import ENGINES
from tests.deploying import VERSIONS

ENGINE_NAMES = ("vllm-ascend", "sglang")


def spellings(engine: EngineData) -> list[Spelling]:
    return [each for spellings in engine.options.values() for each in spellings]


def test_the_versions_are_those_that_verify_was_measured_with() -> None:
    series = tuple(version.series for version in load_engine("vllm-ascend").versions)
    assert series == VERSIONS == tuple(engine.version for engine in ENGINES)


def test_the_command_line_names_every_machine_and_profile() -> None:
    assert set(NAMED_MACHINES) == set(load_targets().targets)
    assert sorted(NAMED_PROFILES) == profile_names()


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_every_spelling_is_a_variable_or_a_flag(name: str) -> None:
    for spelling in spellings(load_engine(name)):
        assert (spelling.variable is None) != (spelling.flag is None), spelling
        assert spelling.key is None or spelling.flag is not None


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_no_version_has_two_spellings_of_an_option(name: str) -> None:
    engine = load_engine(name)
    for option, known in engine.options.items():
        for version in engine.versions:
            assert sum(each.covers(version.series) for each in known) <= 1, option


def test_every_option_that_is_set_is_known_to_some_engine() -> None:
    known = set(load_engine("vllm-ascend").options) | set(load_engine("sglang").options)
    targets = load_targets()
    named = {*targets.common, *targets.sglang, *targets.cpu}
    for name in profile_names():
        profile = load_profile(name)
        named |= set(profile.options)
        for placements in profile.targets.values():
            for placement in placements.values():
                named |= set(placement.options)
    assert named <= known


def test_every_profile_has_a_placement_for_each_role_of_its_machines() -> None:
    targets = load_targets().targets
    for name in profile_names():
        for target, placements in load_profile(name).targets.items():
            assert set(placements) == set(targets[target].roles)


def test_every_layout_of_one_machine_uses_all_its_cards() -> None:
    for name in profile_names():
        for target in ("a2", "a3"):
            placement = load_profile(name).targets.get(target, {}).get("serve")
            if placement is not None:
                cards = placement.data_parallel * placement.tensor_parallel
                assert cards == MACHINES[target].cards


def test_the_share_of_memory_is_the_one_that_sizing_counts_with() -> None:
    assert load_targets().common["memory_share"] == GPU_MEMORY_UTILIZATION
    assert load_profile("tutorial").options["memory_share"] == GPU_MEMORY_UTILIZATION


def test_what_no_version_reads_is_named_nowhere() -> None:
    for spelling in spellings(load_engine("vllm-ascend")):
        assert spelling.variable != "VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE"
    for path in serve_dir().rglob("*.yaml"):
        values = str(yaml.safe_load(path.read_text()))
        assert "glm4_moe_mtp" not in values
        assert "TOPK_OPTIMIZE" not in values


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("until: '0.18'", "until"),  # no such key of a profile
        ("name: Throughput", "name"),
        ("options: 3", "options"),
    ],
)
def test_a_wrong_key_of_the_data_is_named(change: str, place: str, tmp_path: Path) -> None:
    fields = yaml.safe_load((serve_dir() / "profiles/throughput.yaml").read_text())
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(fields | yaml.safe_load(change)))
    with pytest.raises(RecipeError) as raised:
        load(path, Profile)
    assert raised.value.where == f"{path}: {place}"


def test_data_that_is_no_yaml_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("name: [")
    with pytest.raises(RecipeError) as raised:
        load(path, Profile)
    assert raised.value.where == str(path)
