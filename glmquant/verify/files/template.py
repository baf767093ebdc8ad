"""S2: the chat template, rendered in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from glmquant.errors import GlmquantError
from glmquant.survey import printable
from glmquant.verify.files import rendering
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.subject import Subject

TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
MAX_TEMPLATE_NBYTES: Final = 4_000_000
MAX_WAIT_SECONDS: Final = 60


def check_template(subject: Subject) -> Iterator[Finding]:
    """Whether the template renders what an engine is asked for.

    Args:
        subject: The checkpoint; that it has no template at all is said elsewhere.

    Yields:
        One finding for the template that cannot be read, or a case that it does not render.
    """
    try:
        found = template_of(subject)
    except (GlmquantError, UnicodeDecodeError) as error:
        yield _finding(TEMPLATE_FILE, "text in UTF-8", _reason(error))
        return
    if found is not None:
        place, text = found
        trouble = _rendered_apart(text, _special_tokens(subject))
        if trouble is not None:
            yield _finding(place, *trouble)


def _rendered_apart(text: str, tokens: dict[str, str]) -> tuple[str, str] | None:
    """What is expected and found, from a process that may neither run nor grow without end."""
    asked = json.dumps({"template": text, "tokens": tokens}).encode()
    try:
        child = subprocess.run(
            [sys.executable, "-m", rendering.__name__],
            input=asked,
            capture_output=True,
            timeout=MAX_WAIT_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        told = json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        bounds = f"{rendering.MAX_SECONDS} s, or more than {rendering.MAX_NBYTES >> 20} MiB"
        return "a conversation to be rendered", f"no end after {bounds}"
    return None if told is None else (told[0], printable(told[1], 200))


def template_of(subject: Subject) -> tuple[str, str] | None:
    """Where the template stands and its text: the file first, as in transformers."""
    nbytes = subject.found.files.get(TEMPLATE_FILE)
    if nbytes is not None:
        if nbytes > MAX_TEMPLATE_NBYTES:
            raise GlmquantError(f"{nbytes} bytes are too many for a template")
        try:
            return TEMPLATE_FILE, subject.source.read(TEMPLATE_FILE, 0, nbytes).decode()
        finally:
            subject.source.release(TEMPLATE_FILE)
    held = subject.found.objects.get(TOKENIZER_CONFIG, {}).get("chat_template")
    if isinstance(held, list):
        named = {each.get("name"): each.get("template") for each in held if isinstance(each, dict)}
        held = named.get("default")
    if isinstance(held, str):
        return f"{TOKENIZER_CONFIG}: chat_template", held
    return None


def _special_tokens(subject: Subject) -> dict[str, str]:
    """``eos_token`` and the like: transformers hands them to the template."""
    held = subject.found.objects.get(TOKENIZER_CONFIG, {})
    tokens = {}
    for name, value in held.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}", 200)


def _finding(place: str, expected: str, found: str) -> Finding:
    return Finding(
        code="S2",
        severity=Severity.ERROR,
        level=Level.FILES,
        what="the chat template does not render",
        where=place,
        expected=expected,
        found=found,
        hint=f"copy {place.partition(':')[0]} from the BF16 release",
    )
