"""A checkpoint on the loopback hub whose shards have several parts, and what a fetch may leave.

``python -m tests.fetching PART_NBYTES WORD...`` runs a command line with parts of that length.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glmquant.hubs import journal, outputs, patience, prospect, remote
from tests.builders import Recorded, build_checkpoint
from tests.hub import Fault, Hub

NAME = "owner/GLM-4.6"
PROTOCOLS = ("modelscope", "modelers", "hf")
TOKENS = {"modelscope": "MODELSCOPE_API_TOKEN", "modelers": "MODELERS_TOKEN", "hf": "HF_TOKEN"}
PART_NBYTES = 8192
SHARD = "model-00002-of-"
STATE = ".glmquant"

Setter = Callable[[Any, str, Any], None]


def set_parts(nbytes: int, set_to: Setter = setattr) -> None:
    """Parts of another length, and no pauses to speak of."""
    for module in (journal, outputs, prospect):
        set_to(module, "PART_NBYTES", nbytes)
    set_to(patience, "FIRST_PAUSE_SECONDS", 0.01)
    set_to(patience, "LONGEST_PAUSE_SECONDS", 0.05)


def set_head(nbytes: int, set_to: Setter) -> None:
    """How much of a shard is read at once for its header."""
    set_to(remote, "HEAD_NBYTES", nbytes)


def build_repo(folder: Path, shard_nbytes: int = 60_000, seed: int = 0, **changes: Any) -> Recorded:
    """A repository: five to ten parts a shard, a folder, an empty file and a hidden one."""
    recorded = build_checkpoint(
        folder, shard_nbytes=shard_nbytes, seed=seed, **{"hidden_size": 64, **changes}
    )
    (folder / "assets" / "empty.txt").touch()
    (folder / "assets" / "vocabulary.txt").write_bytes(random.Random(0).randbytes(20_000))
    return recorded


def visible(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, and its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = path.read_bytes()
    return found


def finished(folder: Path) -> dict[str, bytes]:
    """Every visible file under its final name."""
    found = visible(folder) if folder.is_dir() else {}
    return {name: data for name, data in found.items() if not name.endswith(".part")}


def state_files(folder: Path) -> list[str]:
    """What glmquant keeps for itself."""
    return sorted(path.name for path in (folder / STATE).iterdir())


def assert_whole(folder: Path, repo: Path) -> None:
    """The folder is the repository, and nothing else is left."""
    assert visible(folder) == visible(repo)
    assert state_files(folder) == ["fetch.json"]


def assert_nothing_wrong(folder: Path, repo: Path) -> None:
    """Whatever has a final name is the repository's."""
    want = visible(repo)
    wrong = [name for name, data in finished(folder).items() if want.get(name) != data]
    assert wrong == []


def shard_of(repo: Path, number: int = 2) -> Path:
    """A shard."""
    return next(repo.glob(f"model-{number:05d}-of-*.safetensors"))


def words(hub: Hub, folder: Path, protocol: str = "modelscope", *more: object) -> list[str]:
    """The command line of a fetch."""
    line = ["fetch", f"{protocol}:{NAME}", folder, "--endpoint", hub.url, "--workers", 4, *more]
    return [str(word) for word in line]


def random_faults(seed: int, repo: Path) -> list[Fault]:
    """Two to six faults at random places."""
    draw = random.Random(seed)
    files = sorted(visible(repo).items())
    shards = [each for each in files if each[0].endswith(".safetensors")]
    faults = []
    for _ in range(draw.randint(2, 6)):
        kind = draw.choice(
            ["cut", "hang", "flip", "status", "html", "gzip", "norange", "wrongrange", "bare",
             "empty", "short", "expire", "redirect", "loop", "door", "delay", "slow", "api",
             "api-cut"]
        )  # fmt: skip
        name, data = draw.choice(shards if draw.random() < 0.8 else files)
        at = draw.randrange(len(data)) if kind in ("flip", "short") and data else 0
        if kind in ("cut", "hang"):
            at = draw.randrange(PART_NBYTES)
        faults.append(
            Fault(
                kind,
                match="" if kind.startswith("api") else name,
                times=draw.randint(1, 3),
                at=at,
                status=draw.choice([401, 403, 404, 410, 429, 500, 503])
                if kind == "status"
                else draw.choice([403, 429, 500, 503]),
                bps=2e5,
                seconds=0.02,
            )
        )
    return faults


if __name__ == "__main__":
    from glmquant.cli import main

    set_parts(int(sys.argv[1]))
    main(sys.argv[2:])
