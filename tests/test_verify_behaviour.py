"""The verdict on what a checkpoint does: bounds, figures, and which engine is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmquant.errors import UsageError
from glmquant.observer import Observer
from glmquant.runtime import hosts
from glmquant.runtime.client import Scores
from glmquant.runtime.environment.layout import Engine
from glmquant.runtime.observe import divergence
from glmquant.runtime.observed import Answer, Divergence, Drafting, Prompt
from glmquant.runtime.prompts import ask, embedded_material, read_material
from glmquant.runtime.server import free_port, running
from glmquant.source import FolderSource
from glmquant.verify.behaviour import choice
from glmquant.verify.behaviour.behaviour import Behaviour, Figures, figures_of, partings_of
from glmquant.verify.behaviour.choice import EngineKind, choose_engine
from glmquant.verify.behaviour.judge import NEAR_TIE, bounds, judge
from glmquant.verify.findings import Level, Severity
from glmquant.verify.subject import Subject, open_subject
from tests.builders import Recorded
from tests.conftest import Ran
from tests.servers import words_of

Run = Callable[..., Ran]
FIGURES = Figures(4096, 3e-4, 1e-5, 5e-5, 0.04, 0.99, 25.0, 25.01)


@pytest.fixture
def output(nano: Recorded, glmquant: Run) -> Path:
    target = nano.folder.with_name("GLM-W8A8")
    assert glmquant("w8a8", nano.folder, target, "--add-mtp").exit_code == 0
    return target


@pytest.fixture
def subject(output: Path) -> Subject:
    return open_subject(FolderSource(output))


def drafted(accepted: int, drafts: int = 500) -> Drafting:
    return Drafting(drafts, drafts, accepted, (accepted,))


def seen(**changes: Any) -> Behaviour:
    """A behaviour without fault, but for the changes."""
    right = Behaviour(
        engine="cpu",
        name="an engine",
        material="embedded",
        prompts=16,
        max_tokens=48,
        speculative_tokens=1,
        partings=(),
        drafting=drafted(400),
    )
    return replace(right, **changes)


def codes(behaviour: Behaviour, subject: Subject, least: float | None = None) -> list[str]:
    found = judge(behaviour, subject, Level.ENGINE, least)
    return [f"{each.severity.value} {each.code}" for each in found]


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [(500, []), (300, []), (299, ["warning E3"]), (150, ["warning E3"]), (149, ["error E3"])],
)
def test_without_a_source_acceptance_warns_below_0_6_and_fails_below_0_3(
    accepted: int, expected: list[str], subject: Subject
) -> None:
    assert codes(seen(drafting=drafted(accepted)), subject) == expected


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [(400, []), (425, []), (426, ["error E3"]), (375, []), (374, ["error E3"]), (0, ["error E3"])],
)
def test_with_a_source_acceptance_has_to_be_the_sources_up_and_down(
    accepted: int, expected: list[str], subject: Subject
) -> None:
    found = seen(drafting=drafted(accepted), source_drafting=drafted(400))
    assert codes(found, subject) == expected


def test_a_low_rate_is_no_fault_where_the_sources_is_as_low(subject: Subject) -> None:
    found = seen(drafting=drafted(100), source_drafting=drafted(110))
    assert codes(found, subject) == []


def test_a_least_acceptance_of_the_users_own_counts_in_any_case(subject: Subject) -> None:
    assert codes(seen(drafting=drafted(400)), subject, 0.9) == ["error E3"]
    assert codes(seen(drafting=drafted(100)), subject, 0.1) == []
    both = seen(drafting=drafted(400), source_drafting=drafted(400))
    assert codes(both, subject, 0.9) == ["error E3"]


def test_several_tokens_at_a_step_are_judged_by_the_first_of_them(subject: Subject) -> None:
    eight = Drafting(500, 4000, 860, (310, 200, 120, 80, 60, 40, 30, 20))
    assert codes(seen(drafting=eight, speculative_tokens=8), subject) == []
    low = eight._replace(by_position=(100, *eight.by_position[1:]))
    assert codes(seen(drafting=low, speculative_tokens=8), subject) == ["error E3"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"perplexity": 28.0}, []),
        ({"perplexity": 513.0}, ["error E5"]),
        ({"perplexity": 999.0, "vocabulary": 151_552}, []),
        ({"perplexity": 1001.0, "vocabulary": 151_552}, ["error E5"]),
        ({"perplexity": 2048.0, "has_own_text": True}, ["warning E5"]),
        ({"same_tokens": True}, []),
        ({"same_tokens": False}, ["error S1"]),
    ],
)
def test_a_model_that_has_learned_nothing_and_another_tokenizer_are_seen(
    changes: dict[str, Any], expected: list[str], subject: Subject
) -> None:
    assert codes(seen(**({"vocabulary": 2048} | changes)), subject) == expected


def test_few_drafts_are_given_three_standard_errors(subject: Subject) -> None:
    few = seen(drafting=drafted(13, 20), source_drafting=drafted(16, 20))
    assert codes(few, subject) == []
    assert codes(seen(drafting=drafted(10, 20)), subject) == []  # 0.6 by chance
    assert codes(seen(drafting=drafted(0, 40)), subject) == ["error E3"]
    none = seen(drafting=drafted(0, 20), source_drafting=drafted(16, 20))
    assert codes(none, subject) == ["error E3"]


def test_a_source_that_did_not_run_is_a_warning(subject: Subject) -> None:
    assert codes(seen(source_trouble="it died"), subject) == ["warning E1"]


def test_nothing_drafted_is_a_fault(subject: Subject) -> None:
    assert codes(seen(drafting=drafted(0, 0)), subject) == ["error E3"]


def test_any_parting_is_a_fault_on_the_cpu_and_on_npus_those_that_are_no_near_tie(
    subject: Subject,
) -> None:
    prompts = (Prompt("a", (1,)), Prompt("b", (2,)))
    one = (Answer((1, 2, 3), (1.0, 0.1, 1.0)), Answer((1, 2, 3), (1.0, 1.0, 0.1)))
    two = (Answer((1, 9, 9), (1.0, 0.1, 1.0)), Answer((1, 2, 3), (1.0, 1.0, 0.1)))
    partings = partings_of(prompts, one, two)
    assert [tuple(each) for each in partings] == [("a", 1, 0.1)]
    assert codes(seen(partings=partings), subject) == ["error E2"]
    assert codes(seen(partings=partings, engine="vllm-ascend"), subject) == []
    wide = tuple(each._replace(gap=NEAR_TIE + 0.01) for each in partings)
    assert codes(seen(partings=wide, engine="vllm-ascend"), subject) == ["error E2"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"kl_tail": 9.0, "perplexity": 40.0}, []),  # neither is judged
        ({"kl_mean": 3.3e-3}, ["error E4"]),
        ({"kl_median": 1e-3}, ["error E4"]),
        ({"same_top": 0.95}, ["error E4"]),
        ({"kl_mean": 3.3e-3, "kl_error": 7e-4, "tokens": 100}, []),  # may be chance
        ({"same_top": 0.95, "tokens": 100}, []),
        ({"same_top": 0.5, "tokens": 100}, ["error E4"]),
        ({"kl_mean": 1.0, "kl_error": 0.1, "tokens": 40}, ["error E4"]),
    ],
)
def test_distributions_are_judged_by_mean_median_and_top_1(
    changes: dict[str, Any], expected: list[str], subject: Subject
) -> None:
    assert codes(seen(divergence=FIGURES._replace(**changes), floor=FIGURES), subject) == expected


def test_noisier_arithmetic_widens_the_bounds_and_quieter_does_not_narrow_them() -> None:
    usual = bounds(None)
    assert bounds(FIGURES._replace(kl_mean=1e-9, kl_median=1e-9, same_top=1.0)) == usual
    noisy = bounds(FIGURES._replace(kl_mean=1e-2, kl_median=1e-2, same_top=0.9))
    assert noisy[0] > usual[0]
    assert noisy[1] > usual[1]
    assert noisy[2] < usual[2]


def test_figures_are_means_medians_quantiles_and_perplexities() -> None:
    kl = np.arange(1000) / 1000
    found = figures_of(
        Divergence(kl, np.arange(1000) < 900, np.full(1000, 2.0), np.full(1000, 2.1))
    )
    assert found.tokens == 1000
    assert found.kl_mean == pytest.approx(0.4995)
    assert found.kl_median == pytest.approx(0.4995)
    assert found.kl_tail == pytest.approx(0.998001)
    assert found.same_top == 0.9
    assert found.base_perplexity == pytest.approx(np.e**2)
    assert found.perplexity_ratio == pytest.approx(np.exp(0.1))


def rated(logits: Any, own: int, top: int) -> Scores:
    """What a server would tell of these logits, ``[tokens, vocabulary]``."""
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :top]
    return Scores(ids, np.take_along_axis(logprobs, ids, 1), logprobs[:, own])


def test_the_divergence_of_the_likeliest_tokens_nears_the_whole_one_from_below() -> None:
    random = np.random.default_rng(5)
    base = random.normal(size=(40, 100)) * 3
    other = base + random.normal(size=(40, 100)) * 0.2
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (base, other))
    whole = (p * np.log(p / q)).sum(1)
    for top, share in ((100, 1.0), (30, 0.5)):
        found = divergence((rated(base, 3, top),), (rated(other, 3, top),))
        assert (found.kl <= whole + 1e-12).all()
        assert found.kl.mean() >= share * whole.mean() - 1e-12
        assert (found.same_top == (base.argmax(1) == other.argmax(1))).all()
        np.testing.assert_allclose(found.nll, -np.log(q[:, 3]))
    same = divergence((rated(base, 3, 10),), (rated(base, 3, 10),))
    assert same.kl.max() < 1e-12


class Words:
    """An encoder of letters."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text.replace("[gMASK]<sop>", "\x01\x02")))

    def encode_chat(self, messages: Any, tools: Any = ()) -> tuple[int, ...]:
        return self.encode(json.dumps([messages, tools]))


def test_the_embedded_prompts_have_a_tool_call_and_a_long_one_and_fit_the_context() -> None:
    material = embedded_material()
    assert any("tools" in request for request in material.requests)
    for context in (256, 2048):
        found = ask(material, Words(), context=context, max_tokens=48)
        lengths = {prompt.name: len(prompt.tokens) for prompt in found.prompts}
        assert len(lengths) == 16
        assert lengths["long"] == min(context - 48, 1500)
        assert found.context <= context
        assert all(prompt.tokens[:2] == (1, 2) for prompt in found.prompts[:12])
        assert {len(window) for window in found.windows} == {256}
        assert len(set(found.windows)) == len(found.windows) == 16


def test_prompts_of_the_users_own_replace_what_the_file_has(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "one", "name": "first"}\n\n{"messages": [{"role": "user"}]}\n')
    found = read_material(file)
    assert [request["name"] for request in found.requests] == ["first", "line 3"]
    assert found.text == embedded_material().text
    file.write_text('{"text": "alpha"}\n{"text": "beta"}\n')
    found = read_material(file)
    assert found.text == "alpha\nbeta"
    assert found.requests == embedded_material().requests


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", None),
        ("hello", 1),
        ('{"prompt": "a"}\n[1]', 2),
        ('{"prompt": ""}', 1),
        ('{"prompt": 5}', 1),
        ('{"prompt": "a", "text": "b"}', 1),
        ('{"messages": []}', 1),
        ('{"messages": ["a"]}', 1),
        ('{"messages": [{"role": "user"}], "tools": 3}', 1),
        ('{"prompt": "a", "name": 3}', 1),
        ('{"prompt": "a", "promt": "b"}', 1),
        ("\x00\x01", 1),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_with_its_line(
    content: str, line: int | None, tmp_path: Path, output: Path, glmquant: Run
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(content)
    ran = glmquant("verify", output, "--prompts", file)
    assert ran.exit_code == 2
    assert f"where:    {file}" + (f": line {line}" if line else "") in ran.stderr


def test_what_was_not_asked_for_is_chosen_by_what_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here: dict[str, Any] = {"npus": 0, "vllm": None, "torch": False, "engine": None, "room": 64e9}
    versions = {"vllm": "1", "vllm-ascend": "2"}
    monkeypatch.setattr(hosts, "count_npus", lambda: here["npus"])
    monkeypatch.setattr(hosts, "find_vllm", lambda: here["vllm"])
    monkeypatch.setattr(hosts, "has_torch", lambda: here["torch"])
    monkeypatch.setattr(hosts, "available_nbytes", lambda: here["room"])
    monkeypatch.setattr(choice, "find_engine", lambda: here["engine"])

    def chosen(nbytes: float = 1e8, wanted: EngineKind = EngineKind.AUTO) -> EngineKind:
        return choose_engine(wanted, int(nbytes)).kind

    assert chosen() is EngineKind.NONE
    here["torch"] = True
    assert chosen() is EngineKind.REFERENCE
    assert chosen(1e9) is EngineKind.NONE
    assert chosen(1e9, EngineKind.REFERENCE) is EngineKind.REFERENCE
    here["engine"] = Engine(tmp_path, tmp_path, tmp_path / "vllm", versions)
    assert chosen() is EngineKind.CPU
    assert chosen(60e9) is EngineKind.NONE
    assert "64.0 GB available" in str(choose_engine(EngineKind.AUTO, int(60e9)).reason)
    here["npus"] = 16
    assert chosen(60e9) is EngineKind.NONE  # no vllm
    here["vllm"] = "/bin/vllm"
    assert chosen(60e9) is EngineKind.ASCEND
    backend = choose_engine(EngineKind.AUTO, 1).backend
    assert backend is not None
    assert (backend.tensor_parallel, backend.program) == (16, "/bin/vllm")
    assert chosen(wanted=EngineKind.NONE) is EngineKind.NONE


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--engine", "cpu"], "the CPU engine is not installed"),
        (["--engine", "vllm-ascend"], "vllm-ascend cannot be run here"),
        (["--engine", "cpu", "--url", "http://127.0.0.1:1"], "contradict each other"),
        (["--url", "127.0.0.1:8000"], "that is no address of a server"),
        (["--num-speculative-tokens", "0"], "0 is not in the range"),
        (["--min-acceptance", "1.5"], "1.5 is not in the range"),
        (["--min-acceptance", "nan"], "that is no number to compare with"),
        (["--timeout", "inf"], "that is no number to compare with"),
        (["--prompts", "/dev/zero"], "a folder, pipe or device"),
        (["--engine", "gpu"], "'gpu' is not one of"),
        (["--prompts", "/no/such/file"], "a file cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(
    words: list[str], what: str, output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "has_torch", lambda: False)
    ran = glmquant("verify", output, *words)
    assert ran.exit_code in (1, 2)
    assert what in ran.stderr
    assert "verdict" not in ran.stdout


def test_the_reference_without_torch_says_what_to_install(
    output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "has_torch", lambda: False)
    ran = glmquant("verify", output, "--engine", "reference")
    assert ran.exit_code == 2
    assert "pip install 'glmquant[reference]'" in ran.stderr


def remote(kind: str, output: Path, glmquant: Run, *words: str) -> Ran:
    """A verification by a server that runs already."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(
        words_of(kind, port),
        os.environ,
        url,
        what="a test",
        limit_seconds=30,
        answer_seconds=5,
        observer=Observer(),
    ):
        return glmquant("verify", output, "--url", url + "/v1", "--timeout", "3", *words)


def test_a_server_that_runs_already_is_asked_by_its_url(output: Path, glmquant: Run) -> None:
    ran = remote("well", output, glmquant, "--json")
    found = ran.events[-1]
    assert ran.exit_code == 0
    assert found["levels"] == ["files", "engine"]
    behaviour = found["behaviour"]
    assert behaviour["engine"] == "url"
    assert behaviour["acceptance"]["rate"] == 0.5
    assert behaviour["acceptance"]["mean_length"] == 1.5
    assert behaviour["partings"] is None
    assert [each["code"] for each in found["findings"]] == ["E3"]  # 0.5: a warning
    assert any("/GLM" in note for note in behaviour["notes"])
    assert ran.events[-1]["next"].startswith("glmquant verify ")  # --source is the next level
    text = remote("well", output, glmquant, "--min-acceptance", "0.9")
    assert text.exit_code == 1
    assert "error E3: fewer draft tokens are accepted than was asked for" in text.stdout


@pytest.mark.parametrize(
    "kind",
    [
        *("500", "hangs", "garbage", "schema", "dies", "drips", "floods", "deep", "infinite"),
        *("nan", "backwards", "generous", "restarts"),
    ],
)
def test_a_server_of_somebody_elses_that_fails_is_an_error_with_its_address(
    kind: str, output: Path, glmquant: Run
) -> None:
    ran = remote(kind, output, glmquant)
    assert ran.exit_code == 2
    assert "where:    http://127.0.0.1:" in ran.stderr
    assert "verdict: open, the server could not be asked, no finding" in ran.stdout
    assert "levels: files; next: see the server's own log" in ran.stdout


def test_what_the_files_show_is_told_though_a_server_fails(
    nano: Recorded, output: Path, tmp_path: Path, glmquant: Run
) -> None:
    page = tmp_path / "report.html"
    words = ("--source", nano.folder, "--url", f"http://127.0.0.1:{free_port()}")
    ran = glmquant("verify", output, *words, "--html", page, "--json")
    assert ran.exit_code == 2
    report, error = ran.events[-2:]
    assert (report["event"], report["verdict"], report["findings"]) == ("verify", "open", [])
    assert report["levels"] == ["files", "values", "source"]
    assert report["roles"] and report["int8"]
    assert (error["event"], error["error"]) == ("error", "EngineError")
    assert "open, the server could not be asked" in page.read_text()
    (output / "quant_model_description.json").write_text("{}")
    ran = glmquant("verify", output, *words)
    assert ran.exit_code == 1
    assert "verdict: not right, " in ran.stdout
    assert "where:    http://127.0.0.1:" in ran.stderr


def test_after_an_engine_and_the_source_the_next_command_serves(
    nano: Recorded, output: Path, glmquant: Run
) -> None:
    ran = remote("well", output, glmquant, "--source", str(nano.folder))
    assert "note: a server has one model: the source was compared as files" in ran.stdout
    assert ran.stdout.splitlines()[-1] == (
        f"levels: files, values, source, engine; next: glmquant serve {output} --machine a3"
    )


@pytest.mark.parametrize("key", ["ключ", "a\nb", "right"])
def test_a_key_goes_into_a_header_whatever_it_is(
    key: str, output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    assert remote("well", output, glmquant).exit_code == 0


def test_a_server_without_drafts_is_refused(output: Path, glmquant: Run) -> None:
    ran = remote("undrafted", output, glmquant)
    assert ran.exit_code == 2
    assert "the server drafts no tokens" in ran.stderr


def test_no_engine_is_asked_about_files_with_errors_unless_it_is_named(
    output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(
        Path("/x"), Path("/x"), Path("/no/such/vllm"), {"vllm": "1", "vllm-ascend": "2"}
    )
    monkeypatch.setattr(choice, "find_engine", lambda: engine)
    (output / "quant_model_description.json").write_text("{}")
    ran = glmquant("verify", output)
    assert "note: no engine was asked: the files have errors" in ran.stdout
    assert "levels: files; next:" in ran.stdout
    named = glmquant("verify", output, "--engine", "cpu", "--json")
    assert named.exit_code == 1
    report = named.events[-1]
    assert "E1" in [each["code"] for each in report["findings"]]
    assert report["engine_log"] == ["/no/such/vllm: No such file or directory"]
    assert report["levels"] == ["files", "engine"]


def test_severities_of_the_levels_of_behaviour_are_in_the_order_of_mending(
    subject: Subject,
) -> None:
    worst = seen(
        drafting=drafted(0), divergence=FIGURES._replace(kl_mean=1.0), partings=(("a", 1, 1.0),)
    )
    worst = replace(worst, partings=partings_of((), (), ()))
    found = list(judge(worst, subject, Level.ENGINE, None))
    assert [each.code for each in found] == ["E3", "E4"]
    assert all(each.severity is Severity.ERROR for each in found)
    assert all(each.hint.startswith("glmquant ") for each in found)


def test_an_unusable_choice_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        choose_engine(EngineKind.CPU, 1)
