"""``glmquant verify`` as a command: what it prints, how it ends, and the page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glmquant.runs import write_run
from glmquant.verify.findings import CODES
from tests.builders import Recorded, build_checkpoint
from tests.conftest import Ran
from tests.foreign import edit_config
from tests.runs import a_run

Run = Callable[..., Ran]
EXACT = r"layers\.4\.|shared_experts|layers\.[01]\.mlp|\.bias$"
"""What the recipe w8a8 leaves float in the tiny checkpoint, whose MTP layer is 4."""


@pytest.fixture
def output(nano: Recorded, glmquant: Run) -> Path:
    """What w8a8 makes of the tiny checkpoint."""
    target = nano.folder.with_name("GLM-W8A8")
    assert glmquant("w8a8", nano.folder, target, "--add-mtp").exit_code == 0
    return target


def test_a_right_checkpoint_ends_with_verdict_levels_and_the_next_command(
    nano: Recorded, output: Path, glmquant: Run
) -> None:
    ran = glmquant("verify", output)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-2:] == [
        "verdict: right, no finding",
        f"levels: files; next: glmquant verify {output} --source SOURCE",
    ]
    deep = glmquant("verify", output, "--deep")
    assert "levels: files, values; next: " in deep.stdout
    whole = glmquant("verify", output, "--source", nano.folder)
    assert whole.stdout.splitlines()[-1].startswith("levels: files, values, source; next: ")


def test_w8a8_names_verify_as_the_next_command(nano: Recorded, glmquant: Run) -> None:
    ran = glmquant("w8a8", nano.folder, nano.folder.with_name("out"))
    out = nano.folder.with_name("out")
    step = f"glmquant verify {out} --source {nano.folder}"
    assert ran.stdout.splitlines()[-1] == f"next: {step}"
    assert glmquant(*step.split()[1:]).exit_code == 0


def test_a_finding_tells_all_its_parts_and_the_exit_code_is_1(output: Path, glmquant: Run) -> None:
    edit_config(output, num_nextn_predict_layers=0)
    ran = glmquant("verify", output)
    assert ran.exit_code == 1
    lines = ran.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("error C2: "))
    assert [line.split(":")[0].strip() for line in lines[start + 1 : start + 5]] == [
        "where",
        "expected",
        "found",
        "next",
    ]
    assert "verdict: not right, 1 error" in ran.stdout


def test_warnings_alone_are_right(output: Path, nano: Recorded, glmquant: Run) -> None:
    edit_config(output, attention_dropout=0.5)
    ran = glmquant("verify", output, "--source", nano.folder, "--json")
    report = ran.events[-1]
    assert (ran.exit_code, report["verdict"]) == (0, "warnings")
    assert [each["code"] for each in report["findings"]] == ["C3"]
    told = glmquant("verify", output, "--source", nano.folder)
    assert "verdict: right, 1 warning\n" in told.stdout


def test_the_json_report_holds_everything(output: Path, nano: Recorded, glmquant: Run) -> None:
    ran = glmquant("verify", output, "--source", nano.folder, "--json")
    report = ran.events[-1]
    assert report["event"] == "verify"
    assert report["levels"] == ["files", "values", "source"]
    assert (report["layout"], report["mtp_layers"]) == ("W8A8", [4])
    assert [row["version"] for row in report["engines"]] == ["0.13", "0.18", "0.23", "0.26", "0.30"]
    assert {row["role"] for row in report["roles"]} == {
        "attention_qkv",
        "attention_out",
        "routed_expert",
    }
    assert report["findings"] == []
    assert {each["tensor"] for each in report["int8"]} == {
        name for name in nano.tensors if "experts." in name or "_proj.weight" in name
    } - {name for name in nano.tensors if re.search(EXACT, name)}
    assert all(each["sqnr_db"] > 40 and each["worst_steps"] <= 0.5 for each in report["int8"])
    doing = [event for event in ran.events if event["event"] == "start"]
    assert doing and doing[-1]["total_nbytes"] > 0


def test_what_two_levels_see_is_told_once(output: Path, nano: Recorded, glmquant: Run) -> None:
    (output / "tokenizer.json").unlink()
    report = glmquant("verify", output, "--source", nano.folder, "--json").events[-1]
    assert [each["where"] for each in report["findings"] if each["code"] == "S1"] == [
        "tokenizer.json"
    ]


def test_the_source_is_named_in_the_next_command_where_it_is_known(
    nano: Recorded, glmquant: Run
) -> None:
    target = nano.folder.with_name("plain")
    glmquant("w8a8", nano.folder, target)
    edit_config(target, num_nextn_predict_layers=1)
    unknown = glmquant("verify", target, "--json").events[-1]["next"]
    assert unknown == f"glmquant add-mtp {target} --from SOURCE"
    known = glmquant("verify", target, "--source", nano.folder, "--json").events[-1]["next"]
    assert known == f"glmquant add-mtp {target} --from {nano.folder}"
    assert glmquant(*known.split()[1:]).exit_code == 0
    assert glmquant("verify", target, "--source", nano.folder).exit_code == 0


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_says_what_the_command_says_and_loads_nothing(
    output: Path, nano: Recorded, glmquant: Run, tmp_path: Path
) -> None:
    (output / "chat_template.jinja").write_text("{{ raise_exception('<script>x</script>') }}")
    page = tmp_path / "report.html"
    ran = glmquant("verify", output, "--source", nano.folder, "--html", page)
    assert ran.exit_code == 1
    parser = _Text()
    parser.feed(page.read_text())
    text = " ".join(" ".join(parser.words).split())
    assert "script" not in parser.tags and parser.links == []
    assert "not right, 3 errors" in text
    assert "error S2: the chat template does not render" in text
    assert f"S2: {CODES['S2']}." in text
    assert "attention_qkv" in text and "0.30" in text
    again = glmquant("verify", output, "--html", page)
    assert again.exit_code == 1 and "attention_qkv" not in page.read_text()


def test_the_page_shows_what_was_measured(output: Path, glmquant: Run, tmp_path: Path) -> None:
    write_run(output, a_run(right=19, of=20, machine="<b>A3</b>"))
    page = tmp_path / "report.html"
    assert glmquant("verify", output, "--html", page).exit_code == 0
    parser = _Text()
    parser.feed(page.read_text())
    assert "b" not in parser.tags
    assert "95 %" in parser.words
    assert "aisbench 3.1, 20 items, vLLM 0.23.0, <b>A3</b>, 2026-08-22T10:15:00Z" in parser.words


def test_a_page_replaces_no_other_file(output: Path, glmquant: Run) -> None:
    before = (output / "config.json").read_bytes()
    ran = glmquant("verify", output, "--html", output / "config.json")
    assert (ran.exit_code, "another file" in ran.stderr) == (2, True)
    assert (output / "config.json").read_bytes() == before
    gone = glmquant("verify", output, "--html", output / "none" / "page.html")
    assert (gone.exit_code, "no folder" in gone.stderr) == (2, True)


def test_what_is_no_w8a8_checkpoint_is_refused(
    nano: Recorded, glmquant: Run, tmp_path: Path
) -> None:
    ran = glmquant("verify", nano.folder)
    assert ran.exit_code == 2
    assert "not a W8A8 checkpoint" in ran.stderr and "BF16" in ran.stderr
    assert f"hint:     glmquant w8a8 {nano.folder}" in ran.stderr
    (tmp_path / "empty").mkdir()
    empty = glmquant("verify", tmp_path / "empty")
    assert (empty.exit_code, "not a model folder" in empty.stderr) == (2, True)
    nothing = glmquant("verify", tmp_path / "nothing")
    assert (nothing.exit_code, "no such folder" in nothing.stderr) == (2, True)


@pytest.mark.parametrize("words", [["--tp", "0"], ["--tp", "x"], ["--source"], ["--workers", "0"]])
def test_wrong_usage_ends_with_2(output: Path, glmquant: Run, words: list[str]) -> None:
    assert glmquant("verify", output, *words).exit_code == 2


def test_a_source_that_is_none_is_named(output: Path, glmquant: Run, tmp_path: Path) -> None:
    gone = glmquant("verify", output, "--source", tmp_path / "none")
    assert (gone.exit_code, "no such source" in gone.stderr) == (2, True)
    quantized = glmquant("verify", output, "--source", output)
    assert (quantized.exit_code, "already quantized" in quantized.stderr) == (2, True)


def test_swapped_folders_are_put_right(output: Path, nano: Recorded, glmquant: Run) -> None:
    swapped = glmquant("verify", nano.folder, "--source", output)
    step = f"glmquant verify {output} --source {nano.folder}"
    assert (swapped.exit_code, f"hint:     {step}" in swapped.stderr) == (2, True)
    assert glmquant(*step.split()[1:]).exit_code == 0


def test_a_source_of_another_model_is_a_finding(
    output: Path, glmquant: Run, tmp_path: Path
) -> None:
    other = build_checkpoint(tmp_path / "other", seed=7)
    report = glmquant("verify", output, "--source", other.folder, "--json").events[-1]
    assert {each["code"] for each in report["findings"]} >= {"N1", "M1", "M2"}


def test_the_only_quantized_folder_here_is_meant(
    output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output.parent)
    assert glmquant("verify").stdout.startswith("GLM-W8A8: ")
    monkeypatch.chdir(output)
    assert glmquant("verify").stdout.startswith("GLM-W8A8: ")
    shutil.copytree(output, output.with_name("second"))
    monkeypatch.chdir(output.parent)
    two = glmquant("verify")
    assert (two.exit_code, "GLM-W8A8, second" in two.stderr) == (2, True)


def test_nothing_is_written_into_the_folder(output: Path, nano: Recorded, glmquant: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    glmquant("verify", output, "--deep", "--source", nano.folder)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_names_cannot_write_to_the_terminal(output: Path, glmquant: Run) -> None:
    index = output / "model.safetensors.index.json"
    fields = json.loads(index.read_bytes())
    fields["weight_map"]["evil\x1b[31m.weight"] = next(iter(fields["weight_map"].values()))
    index.write_text(json.dumps(fields))
    ran = glmquant("verify", output)
    assert (ran.exit_code, "\x1b" in ran.stdout) == (1, False)


def test_engines_are_told_in_words_with_their_reasons(output: Path, glmquant: Run) -> None:
    right = glmquant("verify", output).stdout
    assert re.search(r"  0.18, 0.23, 0.26, 0.30 +(loads, the draft too *){2}\n", right)
    description = output / "quant_model_description.json"
    fields = json.loads(description.read_bytes())
    del fields["model.layers.4.shared_head.head.weight"]
    description.write_text(json.dumps(fields))
    lines = glmquant("verify", output).stdout.splitlines()
    assert any(line.startswith("  0.18, 0.26") and "draft fails [2]" in line for line in lines)
    assert "    [2] KeyError 'model.layers.4.head.weight'" in lines


def test_a_checkpoint_without_the_mtp_layer_of_its_source_is_told_how_to_get_it(
    nano: Recorded, glmquant: Run
) -> None:
    target = nano.folder.with_name("plain")
    glmquant("w8a8", nano.folder, target)
    report = glmquant("verify", target, "--source", nano.folder, "--json").events[-1]
    assert (report["verdict"], report["next"]) == (
        "clean",
        f"glmquant add-mtp {target} --from {nano.folder}",
    )


def test_every_file_that_is_closed_to_others_is_named(output: Path, glmquant: Run) -> None:
    for path in output.glob("*.safetensors"):
        path.chmod(0o600)
    (finding,) = glmquant("verify", output, "--json").events[-1]["findings"]
    assert (finding["code"], "mode 0600" in finding["found"]) == ("F2", True)
    assert finding["where"].count(".safetensors") == len(list(output.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("config.json", "C3"),
        ("quant_model_description.json", "D1"),
        ("model.safetensors.index.json", "F1"),
        ("generation_config.json", "S1"),
    ],
)
def test_a_byte_order_mark_is_found_and_the_next_command_mends_it(
    output: Path, glmquant: Run, file: str, code: str
) -> None:
    path = output / file
    before = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + before)
    (finding,) = glmquant("verify", output, "--json").events[-1]["findings"]
    assert (finding["code"], finding["where"]) == (code, file)
    subprocess.run(shlex.split(finding["next"]), check=True)
    assert path.read_bytes() == before


def test_a_checkpoint_that_cannot_be_mended_is_made_anew_with_its_recipe_and_beside_it(
    nano: Recorded, glmquant: Run
) -> None:
    target = nano.folder.with_name("full")
    glmquant("w8a8", nano.folder, target, "--recipe", "w8a8-full")
    description = target / "quant_model_description.json"
    fields = json.loads(description.read_bytes())
    description.write_text(json.dumps(fields | {"model.layers.2.self_attn.q_proj.weight": "W4A8"}))
    step = glmquant("verify", target, "--source", nano.folder, "--json").events[-1]["next"]
    assert step == f"glmquant w8a8 {nano.folder} {target}-new --recipe w8a8-full"
    assert glmquant(*step.split()[1:]).exit_code == 0
    assert glmquant("verify", f"{target}-new", "--source", nano.folder).exit_code == 0


def test_an_int8_cache_that_has_no_tensors_is_found(output: Path, glmquant: Run) -> None:
    description = output / "quant_model_description.json"
    fields = json.loads(description.read_bytes())
    nulls = {"fa_quant_type": None, "kv_quant_type": None}
    description.write_text(json.dumps(fields | nulls))
    assert glmquant("verify", output).exit_code == 0
    description.write_text(json.dumps(fields | {"fa_quant_type": "FAKQuant"}))
    (finding,) = glmquant("verify", output, "--json").events[-1]["findings"]
    assert (finding["code"], finding["found"]) == ("D4", "'FAKQuant'")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts_per_tok": 9},
        {"n_group": 5},
        {"topk_group": 3},
        {"hidden_act": "nope"},
        {"partial_rotary_factor": 7},
        {"max_position_embeddings": 0},
    ],
)
def test_a_value_that_cannot_be_meant_is_found(
    output: Path, glmquant: Run, changes: dict[str, object]
) -> None:
    edit_config(output, **changes)
    (finding,) = glmquant("verify", output, "--json").events[-1]["findings"]
    assert (finding["code"], finding["where"]) == ("C3", f"config.json: {next(iter(changes))}")


def test_a_tokenizer_cut_short_is_found(output: Path, glmquant: Run) -> None:
    (output / "tokenizer.json").write_text('{"version')
    (finding,) = glmquant("verify", output, "--json").events[-1]["findings"]
    assert (finding["code"], finding["where"]) == ("S1", "tokenizer.json")


@pytest.mark.parametrize("page", ["", "."])
def test_a_page_has_to_be_a_file(output: Path, glmquant: Run, page: str) -> None:
    assert glmquant("verify", output, "--html", page).exit_code == 2
