"""S2: what transformers renders is right, what it does not is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmquant.source import FolderSource
from glmquant.verify.files.rendering import CASES, render
from glmquant.verify.files.template import check_template
from glmquant.verify.findings import Finding
from glmquant.verify.subject import open_subject
from tests.builders import build_checkpoint
from tests.test_demo_model import MODEL


def findings(folder: Path, template: str | bytes | None, **tokenizer: object) -> list[Finding]:
    """What is found in a checkpoint with this template."""
    build_checkpoint(folder)
    path = folder / "chat_template.jinja"
    path.unlink()
    if template is not None:
        path.write_bytes(template if isinstance(template, bytes) else template.encode())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return list(check_template(open_subject(FolderSource(folder))))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ tools | tojson(indent=2, ensure_ascii=False) }}{{ messages }}",
        "{{ strftime_now('%Y') }}{{ messages }}",
        "{% if messages is not defined %}{{ raise_exception('none') }}{% endif %}{{ messages }}",
        "{{ eos_token + messages[0].content }}",
        "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ messages }}",
    ],
)
def test_what_transformers_knows_renders(tmp_path: Path, template: str) -> None:
    assert findings(tmp_path / "m", template, eos_token={"content": "</s>"}) == []


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{% for message in messages %}", "TemplateSyntaxError"),
        ("{{ messages | no_such_filter }}", "TemplateAssertionError"),
        ("{{ messages }}{% if tools %}{{ raise_exception('no tools') }}{% endif %}", "no tools"),
        ("{{ messages }}{% if enable_thinking is false %}{{ 1 / 0 }}{% endif %}", "ZeroDivision"),
        ("x{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}{{ ().__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("  \n", "nothing but white space"),
        ("hello", "a prompt without the question"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        ("{% include 'other.jinja' %}", "TypeError"),
    ],
)
def test_what_does_not_render_is_found(tmp_path: Path, template: str | bytes, found: str) -> None:
    (finding,) = findings(tmp_path / "m", template)
    assert (finding.code, finding.where) == ("S2", "chat_template.jinja")
    assert found in finding.found


def test_the_case_that_does_not_render_is_named(tmp_path: Path) -> None:
    refusal = "{% if enable_thinking is false %}{{ raise_exception('no') }}{% endif %}"
    template = refusal + "{{ messages }}"
    (finding,) = findings(tmp_path / "m", template)
    assert finding.expected == "a question, thinking off to be rendered"


@pytest.mark.parametrize(
    "held", ["{{ 1 / 0 }}", [{"name": "default", "template": "{{ 1 / 0 }}"}, {"name": "other"}]]
)
def test_a_template_inside_the_tokenizer_config_is_rendered_too(
    tmp_path: Path, held: object
) -> None:
    (finding,) = findings(tmp_path / "m", None, chat_template=held)
    assert finding.where == "tokenizer_config.json: chat_template"


def test_the_file_wins_over_the_tokenizer_config(tmp_path: Path) -> None:
    assert findings(tmp_path / "m", "{{ messages }}", chat_template="{{ 1 / 0 }}") == []


def test_no_template_is_for_others_to_say(tmp_path: Path) -> None:
    assert findings(tmp_path / "m", None) == []


def test_a_template_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    (finding,) = findings(tmp_path / "m", b"x" * 4_000_001)
    assert "too many" in finding.found


@pytest.mark.torch
def test_every_case_is_rendered_as_transformers_renders_it() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    template = (MODEL / "chat_template.jinja").read_text()
    for variables in CASES.values():
        theirs = tokenizer.apply_chat_template(
            variables["messages"],
            tools=variables.get("tools"),
            add_generation_prompt=True,
            tokenize=False,
            **{k: v for k, v in variables.items() if k not in ("messages", "tools")},
        )
        assert render(template, variables) == theirs


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{% set ns = namespace(x='a' * 1000) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
)
def test_a_template_that_has_no_end_or_no_bounds_is_found(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = findings(tmp_path / "m", template)
    assert (finding.code, "more than 1024 MiB" in finding.found) == ("S2", True)
