"""E6, as far as the rules tell it: no version loads a folder in which nothing else is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glmquant.glm4_moe import CONFIG_FILE
from glmquant.verify.engines.predict import Verdict
from glmquant.verify.engines.reading import TAKEN_FOR_A_PATTERN
from glmquant.verify.engines.rules import Fate
from glmquant.verify.engines.settings import OF_CONFIG
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.remedies import copy_file, rename, verify_against
from glmquant.verify.subject import Subject


def check_foretold(subject: Subject, verdicts: Sequence[Verdict]) -> Iterator[Finding]:
    """That every version fails, where its users say ``--quantization ascend``.

    Args:
        subject: The folder.
        verdicts: What the rules say of it.
    """
    targets = [verdict.with_flag.target for verdict in verdicts]
    if all(target.fate is Fate.FAILS for target in targets):
        why = targets[-1].why[0]
        yield Finding(
            code="E6",
            severity=Severity.ERROR,
            level=Level.FILES,
            what="no version of vllm-ascend loads it",
            where=str(subject.path),
            expected="that the target loads, in the table above",
            found=why,
            hint=remedy_of_failure(subject, why),
        )


def remedy_of_failure(subject: Subject, why: str) -> str:
    """What to type about a failure that every version has.

    Args:
        subject: The folder.
        why: The reason, in our words.
    """
    if why.startswith(TAKEN_FOR_A_PATTERN):
        return rename(subject)
    if why.startswith((f"{CONFIG_FILE}: ", OF_CONFIG)):
        return copy_file(subject, CONFIG_FILE)
    return verify_against(subject)
