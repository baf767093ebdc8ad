"""The loaders of vllm-ascend's versions, as far as it needs none of them."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from glmquant.errors import EngineError, UsageError
from glmquant.runtime.environment.layout import Built
from glmquant.runtime.matrix import (
    PAIRS,
    Case,
    Model,
    Unfilled,
    Way,
    choose_pairs,
    find_pair,
    run_cases,
)
from glmquant.runtime.matrix.environment import INSIDE, pair_pins
from glmquant.source import FolderSource
from glmquant.verify.engines.predict import ENGINES, Outcome, predict
from glmquant.verify.engines.reading import read_as_engine
from glmquant.verify.engines.rules import Fate
from glmquant.verify.loads.explain import differs, explained, lost, said
from glmquant.verify.loads.reduced import EXPERTS, WIDTHS, can_be_reduced, reduce_checkpoint
from glmquant.verify.subject import open_subject
from tests.builders import build_checkpoint
from tests.conftest import Ran
from tests.defects import (
    DEFECTS,
    DESCRIPTION,
    INDEX,
    MOE,
    describe_as,
    met_by_loading,
    quantize,
    read_shard,
    recast,
)

OLD, NEW = ENGINES[0], ENGINES[-1]


def test_the_pairs_are_the_versions_of_the_table() -> None:
    assert [pair.version for pair in PAIRS] == [engine.version for engine in ENGINES]


def test_versions_are_chosen_by_any_of_their_numbers_and_stay_in_order() -> None:
    chosen = choose_pairs("0.30.0rc2, 0.13,0.13.0")
    assert [pair.version for pair in chosen] == ["0.13", "0.30"]
    assert choose_pairs(None) == PAIRS


@pytest.mark.parametrize("text", ["", ",", "0.14", "0.23,0.3"])
def test_another_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no loaders of that version"):
        choose_pairs(text)


def test_all_that_a_pair_installs_is_pinned_and_each_has_a_folder_of_its_own() -> None:
    for pair in PAIRS:
        pins = pair_pins(pair)
        named = [line for step in pins.steps() for line in step.packages]
        assert sorted(named) == sorted(pins.requirements)
        assert all(line.count("==") == 1 for line in named)
        assert pins.name.startswith(f"pair-py311-{pair.version}-")
    assert len({pair_pins(pair).name for pair in PAIRS}) == len(PAIRS)


def test_versions_alone_are_refused(glmquant: Callable[..., Ran], tmp_path: Path) -> None:
    for words in (("verify", tmp_path), ("engine", "install")):
        ran = glmquant(*words, "--versions", "0.23")
        assert ran.exit_code == 2
        assert "none is asked for" in ran.stderr


def test_loaders_that_are_not_installed_are_said_with_the_command(
    glmquant: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = glmquant("verify", tmp_path, "--load-matrix", "--versions", "0.23,0.30")
    assert ran.exit_code == 2
    assert "glmquant engine install --matrix --versions 0.23,0.30" in ran.stderr
    ran = glmquant("verify", tmp_path, "--load-matrix")
    assert ran.exit_code == 2
    assert "none for 0.13, 0.18, 0.23, 0.26, 0.30" in ran.stderr


def test_status_tells_of_every_loader(
    glmquant: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(tmp_path / "engines"))
    (event,) = glmquant("engine", "status", "--json").events
    assert [(each["version"], each["state"]) for each in event["loaders"]] == [
        (pair.version, "absent") for pair in PAIRS
    ]
    assert glmquant("engine", "remove").stdout == "nothing to remove: there is no environment\n"


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[str], Built]:
    """A Python in place of a pair's: its program runs with the given text in place of ours."""

    def make(text: str) -> Built:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        program = folder / "python"
        (folder / "program.py").write_text(text)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/program.py "$3" "$4"\n')
        program.chmod(0o755)
        return Built(folder, program, {})

    return make


def case(folder: Path) -> Case:
    return Case("one", folder, Way(), has_draft=False, limit_seconds=5)


def test_a_program_that_ends_is_told_of_with_its_last_words_and_leaves_nothing(
    answering: Callable[[str], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    built = answering("raise ImportError('no such \\x1b[31mmodule')")
    with pytest.raises(EngineError) as caught:
        list(run_cases(PAIRS[0], built, [case(tmp_path)]))
    assert "ImportError: no such" in (caught.value.found or "")
    assert "\x1b" not in str(caught.value)
    assert list((tmp_path / "t").iterdir()) == []


def replying(**answer: Any) -> str:
    """A program that gives the same answer to every load."""
    return (
        "import json, pathlib, sys, time\n"
        "asked = pathlib.Path(sys.argv[1])\n"
        "while not asked.exists(): time.sleep(0.02)\n"
        "for case in json.loads(asked.read_text()):\n"
        f"    answer = {{'case': case['name'], 'seconds': 1, **{answer!r}}}\n"
        "    open(sys.argv[2], 'a').write(json.dumps(answer) + '\\n')\n"
    )


def failing(error: str, message: str) -> dict[str, str]:
    return {"fate": "fails", "error": error, "message": message, "place": "vllm/x.py:1 f"}


LOADED: Final = {"fate": "loads", "parameters": 20, "unfilled": {}}


def test_answers_come_one_by_one_and_a_copy_is_made_where_its_end_is_cared_for(
    answering: Callable[[str], Built], tmp_path: Path
) -> None:
    built = answering(
        "import json, pathlib, sys, time\n"
        "asked = pathlib.Path(sys.argv[1])\n"
        "while not asked.exists(): time.sleep(0.02)\n"
        "case, = json.loads(asked.read_text())\n"
        "found = sorted(path.name for path in pathlib.Path(case['folder']).iterdir())\n"
        "model = {'fate': 'fails', 'error': 'E', 'message': str(found), 'place': 'p'}\n"
        "answer = {'case': 'one', 'target': model, 'draft': None, 'seconds': 1}\n"
        "open(sys.argv[2], 'a').write(json.dumps(answer) + '\\n')\n"
    )
    made: list[Path] = []

    def copy(folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    (load,) = run_cases(PAIRS[0], built, [case(tmp_path)], copy)
    assert load.target == Model("E", "['config.json']", "p")
    assert not made[0].exists()


def test_without_the_engine_no_pair_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(tmp_path))
    assert [find_pair(pair) for pair in PAIRS] == [None] * len(PAIRS)


def unfilled(name: str, *, is_default: bool = False) -> Unfilled:
    return Unfilled(name, 4, 4, is_default)


def names(found: tuple[Unfilled, ...]) -> list[str]:
    return [each.name for each in found]


def test_only_parameters_that_are_computed_with_count_as_lost() -> None:
    types = {
        "model.layers.0.self_attn.q_proj.weight": "W8A8",
        "model.layers.2.mlp.shared_experts.gate_proj.weight": "W8A8",
    }
    shared = "model.layers.2.mlp.shared_experts.gate_up_proj.weight_scale"
    bias = f"{MOE}.gate.e_score_correction_bias"
    model = Model(
        None,
        unfilled=(
            unfilled("model.layers.1.mlp.down_proj.weight"),
            unfilled("model.layers.1.mlp.down_proj.weight_offset"),
            unfilled("model.layers.0.self_attn.qkv_proj.weight_scale"),
            unfilled("model.layers.4.mtp_block.input_layernorm.bias", is_default=True),
            unfilled("model.layers.4.mtp_block.input_layernorm.weight", is_default=True),
            unfilled(bias, is_default=True),
            unfilled(shared),
        ),
    )
    always = [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.4.mtp_block.input_layernorm.weight",
        bias,
    ]
    assert names(lost(model, OLD, types)) == always
    assert names(lost(model, NEW, types)) == [*always, shared]


@pytest.mark.parametrize(
    ("error", "message", "meaning"),
    [
        ("KeyError", "'layers.2.mlp.experts.w2_weight_offset'", "no description is read"),
        ("KeyError", "'model.layers.4.head.weight'", "has no entry"),
        ("ValueError", "Following weights were not initialized from checkpoint", "not in the file"),
        ("ValueError", "Not all shards of x are quantized with same quant type", "several types"),
        ("NotImplementedError", "vLLM Ascend doesn't support W8A8 for moe.", "no scheme"),
        ("FileNotFoundError", "Weight files referenced in index but missing", "not there"),
        ("RuntimeError", "start (0) + length (24) exceeds dimension size (12).", "another shape"),
        ("ZeroDivisionError", "division by zero", ""),
    ],
)
def test_messages_are_explained(error: str, message: str, meaning: str) -> None:
    model = Model(error, message, "vllm/x.py:1 f")
    assert meaning in explained(model, None)
    assert bool(meaning) == bool(explained(model, None))
    assert explained(model, Outcome(Fate.FAILS, ("the reason",))) == "the reason"
    other = Outcome(Fate.FAILS, ("OverflowError: of another place",))
    assert explained(model, other) == explained(model, None)


def test_an_engines_words_are_shown_on_a_line_that_a_terminal_may_have() -> None:
    text = said(Model("KeyError", "one\n  two \x1b[31m" + "x" * 5000, "p"))
    assert text.startswith("KeyError: one two ")
    assert said(Model("E", "=" * 80 + "\nlost\n" + "=" * 80, "p")) == "E: lost"
    assert "\x1b" not in text
    assert len(text) <= 610


def test_the_rules_differ_where_one_loads_or_fills_what_the_other_does_not() -> None:
    loads, fails = Model(None), Model("E")
    right, wrong = Outcome(Fate.LOADS), Outcome(Fate.WRONG, ("uninitialised tensors: a",))
    values = Outcome(Fate.WRONG, ("float tensors read as int8: a",))
    failing = Outcome(Fate.FAILS, ("KeyError",))
    later = Outcome(Fate.FAILS, ("at the first token: a",))
    agreed = [
        (right, loads, False),
        (failing, fails, False),
        (wrong, loads, True),
        (values, loads, False),
        (values, loads, True),
        (later, loads, True),
        (None, loads, False),
        (right, None, False),
    ]
    assert not any(differs(*each) for each in agreed)
    opposed = [
        (right, fails, False),
        (failing, loads, False),
        (right, loads, True),
        (wrong, loads, False),
        (later, fails, False),
    ]
    assert all(differs(*each) for each in opposed)


WIDE: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 80,
    "n_routed_experts": 8,
    "head_dim": 32,
    "num_experts_per_tok": 6,
}


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A right checkpoint of eight experts, wider than its copy."""
    source = build_checkpoint(tmp_path / "GLM", keep=False, **WIDE)
    quantize(source.folder, tmp_path / "wide", "--add-mtp")
    return tmp_path / "wide"


def reduced(folder: Path, to: Path) -> Path:
    subject = open_subject(FolderSource(folder))
    assert can_be_reduced(subject)
    to.mkdir()
    reduce_checkpoint(subject, to)
    return to


def test_a_copy_has_the_same_names_types_and_layers_but_few_experts(
    wide: Path, tmp_path: Path
) -> None:
    small = reduced(wide, tmp_path / "small")
    for path in wide.glob("*.safetensors"):
        there, here = read_shard(path), read_shard(small / path.name)
        kept = {name for name in there if not any(f".experts.{n}." in name for n in (4, 5, 6, 7))}
        assert here.keys() == kept
        assert all(here[name][0] == there[name][0] for name in here)
    described = json.loads((small / DESCRIPTION).read_bytes())
    assert f"{MOE}.experts.{EXPERTS - 1}.up_proj.weight" in described
    assert f"{MOE}.experts.{EXPERTS}.up_proj.weight" not in described
    config = json.loads((small / "config.json").read_bytes())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (4, 64)
    assert config["num_experts_per_tok"] == EXPERTS


def test_a_copy_of_a_right_checkpoint_is_right_to_the_rules(wide: Path, tmp_path: Path) -> None:
    small = open_subject(FolderSource(reduced(wide, tmp_path / "small")))
    there = open_subject(FolderSource(wide))
    assert predict(small) == predict(there)
    assert {run.with_flag.text for run in predict(small)} == {"loads, the draft too"}


ATTENTION = "model.layers.1.self_attn"


@pytest.mark.parametrize(
    "apply",
    [
        recast(f"{ATTENTION}.q_proj.weight_scale", "F32", (128,)),
        recast("model.layers.1.input_layernorm.weight", "BF16", (1, 128)),
        describe_as(f"{ATTENTION}.k_proj.", "FLOAT"),
    ],
)
def test_a_copy_has_the_defects_of_what_it_was_made_of(
    wide: Path, tmp_path: Path, apply: Callable[[Path], str]
) -> None:
    apply(wide)
    small = open_subject(FolderSource(reduced(wide, tmp_path / "small")))
    fates = [run.with_flag.fate_text for run in predict(open_subject(FolderSource(wide)))]
    assert [run.with_flag.fate_text for run in predict(small)] == fates
    assert fates != ["loads, the draft too"] * 5


NARROW: Final = {
    "hidden_size": 8,
    "intermediate_size": 10,
    "moe_intermediate_size": 6,
    "vocab_size": 32,
    "head_dim": 2,
}
"""Less than what defects are done to."""


@pytest.mark.slow
def test_the_rules_say_of_a_copy_what_they_say_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over every defect that a loader can meet: they say what the loaders do."""
    source = build_checkpoint(tmp_path / "source")
    for key, width in NARROW.items():
        monkeypatch.setitem(WIDTHS, key, width)
    compared, opposed = 0, {}
    for name, folder in met_by_loading(source, tmp_path):
        whole = open_subject(FolderSource(folder))
        taken = read_as_engine(whole).subject
        if can_be_reduced(taken):
            small = folder.with_suffix(".small")
            small.mkdir()
            reduce_checkpoint(taken, small)
            there, here = predict(whole), predict(open_subject(FolderSource(small)))
            fates = [
                [(run.with_flag.fate_text, run.without_flag.fate_text) for run in each]
                for each in (there, here)
            ]
            compared += 1
            if fates[0] != fates[1]:
                opposed[name] = list(zip(there, here, strict=True))[-1]
    assert opposed == {}
    assert compared > 60


@pytest.mark.parametrize("name", ["config.json", DESCRIPTION, INDEX])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_copy_is_encoded_as_what_it_was_made_of(
    wide: Path, tmp_path: Path, name: str, encoding: str
) -> None:
    (wide / name).write_text((wide / name).read_text(), encoding=encoding)
    there = open_subject(FolderSource(wide))
    assert "fails" in {verdict.with_flag.fate_text for verdict in predict(there)}
    if can_be_reduced(there):
        small = open_subject(FolderSource(reduced(wide, tmp_path / "small")))
        assert predict(small) == predict(there)
    else:
        assert (name, encoding) == ("config.json", "utf-16")


def test_what_cannot_be_read_gives_no_copy(wide: Path) -> None:
    (wide / "mtp.safetensors").write_bytes(b"\xff" * 100)
    assert not can_be_reduced(open_subject(FolderSource(wide)))


def test_the_head_counts_of_a_copy_divide_by_two_where_those_of_the_checkpoint_do(
    tmp_path: Path,
) -> None:
    for heads, keys in ((9, 3), (12, 3), (5, 1), (16, 4)):
        source = build_checkpoint(
            tmp_path / f"GLM-{heads}",
            num_attention_heads=heads,
            num_key_value_heads=keys,
            intermediate_size=201,
            keep=False,
        )
        there = tmp_path / f"wide-{heads}"
        quantize(source.folder, there)
        small = open_subject(FolderSource(reduced(there, tmp_path / f"small-{heads}")))
        assert {verdict.with_flag.text for verdict in predict(small)} == {"loads"}
        assert small.config is not None
        assert small.config.num_attention_heads % 2 == heads % 2
        assert small.config.num_key_value_heads % 2 == keys % 2
        assert small.config.intermediate_size == 97


def test_a_copy_has_its_room_on_the_disk(wide: Path, tmp_path: Path) -> None:
    for path in reduced(wide, tmp_path / "small").glob("*.safetensors"):
        found = path.stat()
        assert found.st_blocks * 512 >= found.st_size > 0


def test_what_no_rank_has_a_value_for_is_counted_over_all_ranks() -> None:
    spec = importlib.util.spec_from_file_location("inside_main", INSIDE / "main.py")
    assert spec is not None and spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    ranks = [
        {"unfilled": {"a": [2, False]}, "sizes": {"a": 8, "b": 4}},
        {"unfilled": {"a": [1, False], "b": [4, True]}, "sizes": {"a": 8, "b": 4}},
    ]
    assert main._unfilled_of_all(ranks) == {"a": [3, 16, False], "b": [4, 8, True]}


@pytest.fixture
def installed(
    answering: Callable[[str], Built], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Makes programs stand in for the loaders: one for all, or some for versions of their own."""

    def install(text: str, **others: str) -> None:
        usual = answering(text)
        special = {f"0.{name[1:]}": answering(each) for name, each in others.items()}
        monkeypatch.setattr(
            "glmquant.verify.loads.check.find_pair",
            lambda pair: special.get(pair.version, usual),
        )

    return install


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        ({"stopped": "a process of it was ended by signal 7"}, "df -h /dev/shm"),
        ({"stopped": "a process of it was ended by signal 9"}, "free memory"),
        ({"stopped": "it took more than 4 s"}, "free memory"),
        (
            {"target": failing("RuntimeError", "DefaultCPUAllocator: can't allocate memory: x")},
            "free memory",
        ),
        (
            {"target": LOADED, "draft": failing("OSError", "[Errno 28] No space left on device")},
            "TMPDIR",
        ),
        ({"target": failing("OSError", "[Errno 24] Too many open files: 'x'")}, "ulimit -n"),
        ({"target": failing("MemoryError", "")}, "free memory"),
        ({"unmet": "RuntimeError: [enforce fail] Insufficient space in /dev/shm"}, "/dev/shm"),
        ({"unmet": "RuntimeError: [gloo] Unable to find address for: lo"}, "ip link set lo up"),
    ],
)
def test_what_the_machine_could_not_do_is_not_held_against_the_checkpoint(
    answer: dict[str, Any],
    remedy: str,
    demo_output: Path,
    installed: Callable[..., None],
    glmquant: Callable[..., Ran],
) -> None:
    installed(replying(target=LOADED, draft=LOADED), v18=replying(**answer))
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.18,0.30", "--json")
    assert ran.exit_code == 2
    report = next(event for event in ran.events if event["event"] == "verify")
    assert report["verdict"] == "open"
    assert report["findings"] == []
    old, new = report["loads"]["versions"]
    assert {way["verdict"] for way in old["ways"]} == {"no answer"}
    assert {way["verdict"] for way in new["ways"]} == {"loads, the draft too"}
    assert "loads without an answer" in ran.stderr
    assert "vllm-ascend 0.18" in ran.stderr
    assert remedy in ran.stderr


def test_what_the_table_foretold_is_mended_before_more_memory_is_sought(
    tmp_path: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / "GLM", "--add-mtp")
    config = tmp_path / "GLM" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"num_hidden_layers": 10**9}))
    installed(replying(stopped="it took more than 3.0 GB of memory"))
    ran = glmquant("verify", tmp_path / "GLM", "--load-matrix", "--versions", "0.18,0.30")
    assert ran.exit_code == 1
    assert "mend first what the table says" in ran.stderr


def test_what_no_version_loads_is_an_error_and_else_there_is_one_to_serve_it_with(
    demo_output: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    bad = replying(target=failing("TypeError", "no such thing =========== at all"))
    good = replying(target=LOADED, draft=LOADED)
    installed(bad)
    ran = glmquant("verify", demo_output, "--load-matrix", "--json")
    assert ran.exit_code == 1
    (finding,) = ran.events[-1]["findings"]
    assert (finding["code"], finding["severity"]) == ("E6", "error")
    assert finding["where"] == "the loader of vllm-ascend 0.13, 0.18, 0.23, 0.26, 0.30"
    assert finding["found"] == "TypeError: no such thing at all"
    assert finding["next"] == f"glmquant verify {demo_output} --source SOURCE"

    installed(good, v30=bad)
    ran = glmquant("verify", demo_output, "--load-matrix", "--json")
    assert ran.exit_code == 0
    (finding,) = ran.events[-1]["findings"]
    assert (finding["severity"], finding["where"]) == (
        "warning",
        "the loader of vllm-ascend 0.30",
    )
    assert finding["next"].startswith(f"glmquant serve {demo_output} --version 0.26")
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.30", "--json")
    assert ran.exit_code == 1


def test_what_nobody_can_explain_is_told_with_which_model_it_is(
    demo_output: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    for answer, title in (
        ({"target": failing("TypeError", "x")}, "the model does not load"),
        ({"target": LOADED, "draft": failing("TypeError", "x")}, "the draft model does not load"),
    ):
        installed(replying(**answer))
        ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.30", "--json")
        (finding,) = ran.events[-1]["findings"]
        assert finding["what"] == title


def test_what_an_engine_says_of_a_copy_is_said_of_the_checkpoint(
    demo_output: Path,
    installed: Callable[..., None],
    glmquant: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = replying(target=failing("OSError", "no such file: FOLDER/x"))
    replaced = "    answer['target']['message'] = f\"no such file: {case['folder']}/x\"\n"
    installed(text.replace("    open(", f"{replaced}    open("))
    monkeypatch.setattr("glmquant.verify.loads.check.available_nbytes", lambda: 1000)
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.30", "--json")
    (finding,) = ran.events[-1]["findings"]
    assert finding["found"] == f"OSError: no such file: {demo_output.absolute()}/x"


def test_a_disk_without_room_for_the_small_copy_leaves_the_files_told_of(
    demo_output: Path,
    installed: Callable[..., None],
    glmquant: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    installed(replying(target=LOADED, draft=LOADED))
    monkeypatch.setattr("glmquant.verify.loads.check.available_nbytes", lambda: 1000)
    monkeypatch.setattr("os.posix_fallocate", fail)
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.30", "--json")
    assert ran.exit_code == 2
    report = next(event for event in ran.events if event["event"] == "verify")
    assert report["verdict"] == "open"
    assert "no room for what is loaded" in ran.stderr
    assert "TMPDIR" in ran.stderr


@pytest.mark.parametrize("name", ["GLM [1]", "GLM [!x]"])
def test_a_path_that_vllm_takes_for_a_pattern_is_told_of(tmp_path: Path, name: str) -> None:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / name, "--add-mtp")
    for verdict in predict(open_subject(FolderSource(tmp_path / name))):
        assert "for a pattern" in verdict.with_flag.target.text
        assert "for a pattern" in verdict.without_flag.target.text


def test_what_no_version_loads_is_not_called_right_without_the_loaders(
    tmp_path: Path, glmquant: Callable[..., Ran]
) -> None:
    folder = tmp_path / "a [b]" / "GLM [1]"
    folder.parent.mkdir()
    quantize(build_checkpoint(tmp_path / "source").folder, folder, "--add-mtp")
    ran = glmquant("verify", folder, "--json")
    assert ran.exit_code == 1
    (finding,) = ran.events[-1]["findings"]
    assert (finding["code"], finding["what"]) == ("E6", "no version of vllm-ascend loads it")
    subprocess.run(finding["next"], shell=True, check=True)
    assert glmquant("verify", tmp_path / "a _b_" / "GLM _1_").exit_code == 0


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("Validation error for field 'rope_theta': TypeError", "config.json: rope_theta is 'x'"),
        ("Validation error for field 'n_group': TypeError", "a value of config.json"),
    ],
)
def test_a_reason_of_the_rules_is_given_where_it_is_that_of_the_message(
    message: str, meaning: str
) -> None:
    outcome = Outcome(Fate.FAILS, ("config.json: rope_theta is 'x'",))
    assert explained(Model("StrictDataclassError", message), outcome).startswith(meaning)
    shapes = Outcome(Fate.FAILS, ("a.gate.weight is [8, 256], not [16, 256]",))
    text = "Attempted to load weight (torch.Size([8])) into parameter (torch.Size([16]))"
    assert explained(Model("AssertionError", text), shapes).startswith("a tensor has another shape")
    text = text.replace("[8]", "[8, 256]")
    assert explained(Model("AssertionError", text), shapes) == shapes.why[0]


@pytest.mark.parametrize("name", ["GLM ?", "GLM*"])
def test_a_pattern_that_finds_itself_is_none(tmp_path: Path, name: str) -> None:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / name, "--add-mtp")
    for verdict in predict(open_subject(FolderSource(tmp_path / name))):
        assert verdict.with_flag.text == "loads, the draft too"


def test_a_failure_in_some_ways_alone_is_told_with_them(
    demo_output: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    text = replying(target=LOADED, draft=LOADED)
    bad = failing("ValueError", "3 is not divisible by 2")
    odd = f"if case['ranks'] == 2: answer['target'] = {bad!r}\n"
    installed(text.replace("    open(", f"    {odd}    open("))
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", "0.23", "--json")
    assert ran.exit_code == 0, "that two ranks cannot share it is no error"
    (finding,) = ran.events[-1]["findings"]
    assert finding["severity"] == "warning"
    assert finding["where"] == (
        "the loader of vllm-ascend 0.23 (--quantization ascend, TP 2; --quantization ascend, TP 2, "
        "expert parallel)"
    )


def test_a_draft_is_loaded_where_only_an_engine_can_read_config_json_and_else_it_is_said(
    tmp_path: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / "GLM", "--add-mtp")
    config = tmp_path / "GLM" / "config.json"
    told = json.loads(config.read_bytes())
    drafted = f"    answer['draft'] = {LOADED!r} if case['draft'] else None\n"
    installed(replying(target=LOADED).replace("    open(", f"{drafted}    open("))

    def first_of(content: dict[str, Any]) -> tuple[Any, Any]:
        config.write_text(json.dumps(content))
        ran = glmquant("verify", tmp_path / "GLM", "--load-matrix", "--versions", "0.30", "--json")
        loads = ran.events[-1]["loads"]
        return loads["versions"][0]["ways"][0]["verdict"], loads["undrafted"]

    assert first_of(told) == ("loads, the draft too", None)
    assert first_of({**told, "rms_norm_eps": float("nan")}) == ("loads, the draft too", None)
    verdict, undrafted = first_of({**told, "num_nextn_predict_layers": 0})
    assert verdict == "loads"
    assert undrafted.startswith("no draft was loaded")


def test_a_pipe_in_the_place_of_weights_is_not_waited_on(
    tmp_path: Path, installed: Callable[..., None], glmquant: Callable[..., Ran]
) -> None:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / "GLM", "--add-mtp")
    DEFECTS["a pipe in a shard's place"].apply(tmp_path / "GLM")
    installed(replying(target=LOADED, draft=LOADED))
    ran = glmquant("verify", tmp_path / "GLM", "--load-matrix", "--versions", "0.30", "--json")
    assert ran.exit_code == 1  # the files have errors
    report = next(event for event in ran.events if event["event"] == "verify")
    assert "into a pipe" in report["loads"]["versions"][0]["failure"]
    assert report["loads"]["versions"][0]["ways"] == []


def test_the_page_has_the_table_and_its_reasons(
    demo_output: Path,
    tmp_path: Path,
    installed: Callable[..., None],
    glmquant: Callable[..., Ran],
) -> None:
    bad = replying(target=failing("TypeError", "no such thing"))
    installed(replying(target=LOADED, draft=LOADED), v13=bad, v18="raise MemoryError")
    page = tmp_path / "report.html"
    words = ("--versions", "0.13,0.18,0.30", "--html", page)
    ran = glmquant("verify", demo_output, "--load-matrix", *words)
    assert ran.exit_code == 1
    text = page.read_text()
    assert "<td>--quantization ascend, TP 2, expert parallel</td>" in text
    for word in ("fails [1]", "no answer [2]", "loads, the draft too"):
        assert f"<td>{word}</td>" in text
        assert word in ran.stdout
    assert "[1] TypeError: no such thing" in text
    assert "MemoryError" in text


def test_loads_that_were_interrupted_begin_again(
    demo_output: Path,
    installed: Callable[..., None],
    glmquant: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(replying(target=LOADED, draft=LOADED))

    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("glmquant.verify.loads.check.run_cases", interrupt)
    ran = glmquant("verify", demo_output, "--load-matrix")
    assert ran.exit_code == 130
    assert "interrupted: the same command starts anew" in ran.stderr


def test_a_checkpoint_that_no_loader_could_begin_with_is_not_called_right(
    answering: Callable[[str], Built],
    demo_output: Path,
    glmquant: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = answering("raise MemoryError")
    monkeypatch.setattr("glmquant.verify.loads.check.find_pair", lambda pair: built)
    ran = glmquant("verify", demo_output, "--load-matrix")
    assert ran.exit_code == 2
    assert "no loader ran" in ran.stderr and "MemoryError" in ran.stderr
    assert "verdict: right" not in ran.stdout
