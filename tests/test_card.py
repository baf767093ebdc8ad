"""``glmquant card``: what the page says is true, and nothing else minds that it is there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmquant.results import read_results
from tests.builders import LARGE, Recorded
from tests.conftest import Ran, folder_bytes
from tests.grafting import make_base

Run = Callable[..., Ran]


@pytest.fixture
def output(nano: Recorded, tmp_path: Path, glmquant: Run) -> Path:
    """A W8A8 checkpoint with its MTP layer."""
    target = tmp_path / "GLM-W8A8-floatmtp"
    assert glmquant("w8a8", nano.folder, target, "--add-mtp").exit_code == 0
    return target


def front_matter(text: str) -> dict[str, Any]:
    """What a hub reads."""
    begin, matter, _ = text.split("---\n", 2)
    assert begin == ""
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def as_release(folder: Path, **changes: Any) -> None:
    """Give config.json the sizes of a release."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **LARGE, **changes}))


def test_the_sums_are_those_of_every_other_file(output: Path, glmquant: Run) -> None:
    assert glmquant("card", output).exit_code == 0
    told = re.findall(r"^([0-9a-f]{64})  (.+)$", (output / "README.md").read_text(), re.MULTILINE)
    files = folder_bytes(output)
    del files["README.md"]
    assert {name: digest for digest, name in told} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert "assets/figure.svg" in files
    sums = "".join(f"{digest}  {name}\n" for digest, name in told)
    subprocess.run(["sha256sum", "-c", "--quiet"], cwd=output, input=sums, text=True, check=True)


def test_the_layers_are_those_of_the_run(nano: Recorded, output: Path, glmquant: Run) -> None:
    done = glmquant("w8a8", nano.folder, output, "--add-mtp", "--json").events[-1]
    text = glmquant("card", output, "--print").stdout
    told = {row[0]: row for row in rows(section(text, "What was done"))}
    assert told.keys() == {row["role"] for row in done["roles"]}
    for row in done["roles"]:
        role, scheme, tensors, nbytes, middle, least = told[row["role"]]
        factor = 3 if scheme == "W8A8_DYNAMIC" else 1
        assert (role, scheme) == (row["role"], row["scheme"])
        assert int(tensors) == factor * row["tensors"]
        assert int(nbytes.replace(",", "")) == row["output_nbytes"]
        if factor == 3:
            assert middle == f"{row['sqnr_db_median']:.2f} dB"
            assert least == f"{row['sqnr_db_least']:.2f} dB"
    assert "Recipe `w8a8`" in text


def test_a_release_is_named_as_each_hub_calls_it(output: Path, glmquant: Run) -> None:
    as_release(output, max_position_embeddings=202752)
    for hub, name in (("modelscope", "ZhipuAI/GLM-4.6"), ("hf", "zai-org/GLM-4.6")):
        matter = front_matter(glmquant("card", output, "--print", "--hub", hub).stdout)
        assert matter["base_model"] == [name]
        assert matter["base_model_relation"] == "quantized"
        assert matter["license"] == "mit"
        assert matter["pipeline_tag"] == "text-generation"
        assert matter["tags"] == ["ascend", "npu", "w8a8", "modelslim", "vllm-ascend"]
        assert ("tasks" in matter) is (hub == "modelscope")
    ran = glmquant("card", output, "--print")
    assert ran.stderr == ""
    assert "glmquant serve GLM-W8A8-floatmtp --machine a3" in ran.stdout


def test_what_cannot_be_told_is_left_out_and_said(output: Path, glmquant: Run) -> None:
    ran = glmquant("card", output, "--print")
    assert front_matter(ran.stdout).keys().isdisjoint({"base_model", "license"})
    assert "--base-model OWNER/NAME says it" in ran.stderr
    assert "--license ID says it" in ran.stderr
    words = ("--base-model", "me/GLM", "--license", "apache-2.0", "--name", "Mine")
    ran = glmquant("card", output, "--print", *words)
    matter = front_matter(ran.stdout)
    assert (matter["base_model"], matter["license"]) == (["me/GLM"], "apache-2.0")
    assert "\n# Mine\n" in ran.stdout
    assert "vllm serve Mine " in ran.stdout
    assert ran.stderr == ""


def test_the_command_drafts_where_there_is_an_mtp_layer(
    nano: Recorded, output: Path, tmp_path: Path, glmquant: Run
) -> None:
    def command(folder: Path) -> list[str]:
        text = section(glmquant("card", folder, "--print").stdout, "Serve")
        block = text.partition("```bash\n")[2].partition("\n```")[0]
        return shlex.split(block.splitlines()[1])

    words = command(output)
    assert words[:3] == ["vllm", "serve", output.name]
    assert json.loads(words[words.index("--speculative-config") + 1])["method"] == "mtp"
    assert glmquant("w8a8", nano.folder, tmp_path / "bare").exit_code == 0
    assert "--speculative-config" not in command(tmp_path / "bare")
    text = glmquant("card", tmp_path / "bare", "--print").stdout
    assert "mtp" not in front_matter(text)["tags"]
    assert "There is no MTP layer" in text


def test_results_that_are_no_files_or_no_numbers_are_left_out(output: Path, glmquant: Run) -> None:
    results = output / ".glmquant" / "results"
    results.mkdir(parents=True)
    (results / "endless.json").symlink_to("/dev/zero")
    os.mkfifo(results / "pipe.json")
    (results / "true.json").write_text('{"dataset": "gsm8k", "metric": "accuracy", "value": true}')
    ran = glmquant("card", output, "--print")
    assert ran.exit_code == 0
    assert ran.stderr.count("note: .glmquant/results/") == 3


def test_nothing_minds_the_card(nano: Recorded, output: Path, glmquant: Run) -> None:
    verified = glmquant("verify", output, "--source", nano.folder, "--engine", "none", "--json")
    inspected = glmquant("inspect", output, "--json")
    results = output / ".glmquant" / "results"
    results.mkdir(parents=True)
    (results / "gsm8k.json").write_text('{"dataset": "gsm8k", "metric": "accuracy", "value": 95}')
    assert glmquant("card", output).exit_code == 0
    again = glmquant("verify", output, "--source", nano.folder, "--engine", "none", "--json")
    assert again.exit_code == 0
    assert "mtp" in front_matter((output / "README.md").read_text())["tags"]
    assert again.events[-1] == verified.events[-1]
    assert glmquant("inspect", output, "--json").events == inspected.events
    done = glmquant("w8a8", nano.folder, output, "--add-mtp", "--json").events[-1]
    assert done["already_done"]
    (output / "model.safetensors.index.json").unlink()
    assert glmquant("w8a8", nano.folder, output, "--add-mtp", "--overwrite").exit_code == 0
    assert (output / "README.md").is_file()
    assert (results / "gsm8k.json").is_file()


def test_a_card_of_a_grafted_checkpoint_is_left_alone_by_undo(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    target = tmp_path / "bare"
    assert glmquant("w8a8", nano.folder, target).exit_code == 0
    assert glmquant("card", target).exit_code == 0
    assert glmquant("add-mtp", target, "--from", nano.folder).exit_code == 0
    assert glmquant("card", target).exit_code == 0
    assert "| mtp | FLOAT |" in (target / "README.md").read_text()
    assert glmquant("add-mtp", target, "--undo").exit_code == 0
    assert (target / "README.md").is_file()


def test_a_card_is_replaced_and_what_somebody_wrote_is_not(output: Path, glmquant: Run) -> None:
    page = output / "README.md"
    page.write_text("# Mine\n")
    ran = glmquant("card", output)
    assert ran.exit_code == 2
    assert f"where:    {page}" in ran.stderr
    assert f"hint:     glmquant card {output} --print shows the card;" in ran.stderr
    assert page.read_text() == "# Mine\n"
    assert "# GLM-W8A8-floatmtp" in glmquant("card", output, "--print").stdout
    assert page.read_text() == "# Mine\n"
    assert glmquant("card", output, "--overwrite").exit_code == 0
    first = page.read_bytes()
    assert glmquant("card", output).exit_code == 0
    assert page.read_bytes() == first, "the card does not count itself"


def test_what_is_no_finished_checkpoint_has_no_card(nano: Recorded, glmquant: Run) -> None:
    before = folder_bytes(nano.folder)
    ran = glmquant("card", nano.folder, "--overwrite")
    assert ran.exit_code == 2
    assert "expected: an output of glmquant w8a8, or of msModelSlim" in ran.stderr
    assert folder_bytes(nano.folder) == before


@pytest.mark.parametrize("form", ["v0", "v1", "hf"])
def test_a_checkpoint_of_msmodelslim_has_a_card_with_less(
    form: str, nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    ran = glmquant("card", base, "--print")
    assert ran.exit_code == 0, ran.stderr
    assert "its recipe and the errors of its weights are not recorded" in ran.stdout
    assert "SQNR" not in ran.stdout
    told = {(row[0], row[1]) for row in rows(section(ran.stdout, "What was done"))}
    assert ("routed_expert", "W8A8_DYNAMIC") in told


def test_results_take_the_place_of_what_is_not_measured(output: Path, glmquant: Run) -> None:
    text = glmquant("card", output, "--print").stdout
    told = rows(section(text, "Results"))
    assert [row[0] for row in told] == ["gsm8k", "GPQA diamond", "MTP"]
    assert {row[2] for row in told} == {"not measured"}
    folder = output / ".glmquant" / "results"
    folder.mkdir(parents=True)
    gsm8k = {
        "suite": "AISBench",
        "dataset": "GSM8K",
        "metric": "accuracy",
        "value": 95.8,
        "unit": "%",
        "items": 1319,
        "interval": [94.6, 96.8],
        "engine": "vllm-ascend 0.23.0",
        "machine": "Atlas `800` \\| <b>A3</b> & [more](x)",
        "date": "2026-08-22",
        "unknown": [1],
    }
    (folder / "a.json").write_text(json.dumps(gsm8k))
    bad: list[Any] = [{"dataset": "MTP"}, 7, {"dataset": "x", "metric": "y", "value": float("nan")}]
    (folder / "b.json").write_text(
        json.dumps([*bad, {"dataset": "MTP", "metric": "acceptance rate", "value": 0.91}])
    )
    (folder / "c.json").write_text("{")
    ran = glmquant("card", output, "--print")
    told = [
        line.split("|")[1:-1]
        for line in section(ran.stdout, "Results").splitlines()
        if line.startswith("| ")
    ]
    assert [[cell.strip() for cell in row] for row in told[1:]] == [
        [
            *("GSM8K", "accuracy", "95.8 %, 94.6 to 96.8"),
            "AISBench, 1,319 items, vllm-ascend 0.23.0, Atlas &#96;800&#96; \\&#124; "
            "&#60;b&#62;A3&#60;/b&#62; &#38; &#91;more&#93;(x), 2026-08-22",
        ],
        ["MTP", "acceptance rate", "0.91", ""],
        ["GPQA diamond", "accuracy", "not measured", ""],
    ]
    notes = [line for line in ran.stderr.splitlines() if "results/" in line]
    assert len(notes) == 4
    assert notes[0].startswith("note: .glmquant/results/b.json, result 1 is left out: metric: ")


@pytest.mark.parametrize(
    ("dataset", "metric", "is_told"),
    [
        ("gsm8k", "latency", False),
        ("other", "accuracy", False),
        ("gsm8k", "Accuracy", True),
        ("GSM8K-cot", "accuracy (strict)", True),
    ],
)
def test_another_figure_of_a_dataset_is_not_the_one_that_is_missing(
    dataset: str, metric: str, is_told: bool, tmp_path: Path
) -> None:
    folder = tmp_path / ".glmquant" / "results"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps({"dataset": dataset, "metric": metric, "value": 1}))
    assert (("gsm8k", "accuracy") not in read_results(tmp_path).missing) == is_told


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1bb", "a\u2028b"])
def test_a_name_is_a_line_of_text(name: str, output: Path, glmquant: Run) -> None:
    ran = glmquant("card", output, "--name", name)
    assert (ran.exit_code, "that is no name for a heading" in ran.stderr) == (2, True)
    assert not (output / "README.md").exists()


def test_a_name_is_quoted_where_a_shell_reads_it(output: Path, glmquant: Run) -> None:
    text = glmquant("card", output, "--print", "--name", "My model; rm x").stdout
    assert "\n# My model; rm x\n" in text
    assert "\nglmquant serve 'My model; rm x' --machine a3" in text


def test_results_of_nobody_are_none(tmp_path: Path) -> None:
    assert read_results(tmp_path).found == ()


def test_json_holds_the_page(output: Path, glmquant: Run) -> None:
    ran = glmquant("card", output, "--json")
    kinds = [event["event"] for event in ran.events]
    assert kinds == ["start", "card"]
    assert ran.events[-1]["text"] == (output / "README.md").read_text()
    assert ran.events[-1]["file"] == str(output / "README.md")
    assert ran.stderr == ""
