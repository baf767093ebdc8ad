"""All of a diagnosis, group by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glmquant.doctor.checks import Check, State
from glmquant.doctor.clashes import check_packages
from glmquant.doctor.host import check_host
from glmquant.doctor.npus import check_npus, find_cann
from glmquant.doctor.packages import installed_here, installed_in
from glmquant.doctor.reach import check_hubs, offline
from glmquant.runtime.hosts import count_npus


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be looked at.

    Attributes:
        folder: Where checkpoints lie or will.
        python: Whose packages count; None for this interpreter's.
        is_offline: No hub is asked.
        limit_seconds: How long a program, and a hub, may take.
    """

    folder: Path
    python: Path | None = None
    is_offline: bool = False
    limit_seconds: float = 10.0


def diagnose(wish: Wish, environment: Mapping[str, str], root: Path = Path("/")) -> list[Check]:
    """Look at everything; that something is absent is told, and is no error.

    Args:
        wish: What is to be looked at.
        environment: The variables of this process.
        root: Where devices, CANN and mounts are looked for.

    Returns:
        One check a line, group after group.

    Raises:
        UsageError: The Python that was named cannot be asked.
    """
    installed = installed_in(wish.python, wish.limit_seconds) if wish.python else installed_here()
    cann = find_cann(root, environment)
    has_npus = count_npus(root / "dev") > 0
    checks = list(check_packages(installed, has_npus=has_npus, cann=cann[0] if cann else None))
    checks += check_npus(root, environment, wish.limit_seconds)
    checks += check_host(root, wish.folder, environment)
    checks += [offline()] if wish.is_offline else check_hubs(environment, wish.limit_seconds)
    return checks


def next_step(checks: list[Check]) -> str:
    """The remedy that comes first: of a problem, else of a warning; else the first command.

    Args:
        checks: All that was looked at.
    """
    for state in (State.PROBLEM, State.WARNING):
        for check in checks:
            if check.state is state and check.remedy:
                return check.remedy
    return "glmquant fetch glm-4.6, or glmquant demo"
