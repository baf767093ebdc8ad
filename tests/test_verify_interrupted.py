"""A verification that was interrupted goes on; one that ended reads everything anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmquant.checkpoint import open_checkpoint
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.usercache import cache_dir, remove_cached, write_cached
from glmquant.verify.findings import Finding
from glmquant.verify.subject import open_subject
from glmquant.verify.weights.check import SourceResult, check_source, check_values
from glmquant.verify.weights.saved import Saved
from tests.builders import Recorded, build_checkpoint
from tests.defects import assign, floats, quantize, raw
from tests.test_verify_values import Counting

KILLED = """
import os, signal, sys
from pathlib import Path
from glmquant.checkpoint import open_checkpoint
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.subject import open_subject
from glmquant.verify.weights.check import check_source, check_values

folder, source, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
subject, checkpoint = open_subject(FolderSource(folder)), open_checkpoint(FolderSource(source))

replaced, replace = [], Path.replace

def killing(part, target):
    # Each finished shard is one rename in the cache: dies right before one of them.
    replaced.append(target)
    if len(replaced) == left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(part, target)

Path.replace = killing
if sys.argv[4] == "source":
    check_source(subject, checkpoint, observer=Observer(), workers=2)
else:
    check_values(subject, observer=Observer(), workers=2)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir()


@pytest.fixture
def source(tmp_path: Path) -> Recorded:
    return build_checkpoint(tmp_path / "GLM", shard_nbytes=4_000)


@pytest.fixture
def folder(source: Recorded, tmp_path: Path) -> Path:
    """With something to be found in the first shards and in the last."""
    folder = tmp_path / "GLM-W8A8"
    quantize(source.folder, folder, "--add-mtp")
    floats("model.layers.0.self_attn.q_proj.weight_scale", assign((1, 0), 0.0))(folder)
    raw("lm_head.weight", assign((0, 0), 0x7F80))(folder)
    return folder


def run(folder: Path, source: Path, level: str, observer: Observer) -> Any:
    subject = open_subject(FolderSource(folder))
    if level == "values":
        return check_values(subject, observer=observer, workers=2)
    return check_source(
        subject, open_checkpoint(FolderSource(source)), observer=observer, workers=2
    )


def saved_names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("verify-*")) if cache.exists() else []


@pytest.mark.parametrize("level", ["values", "source"])
def test_kill_9_costs_no_shard_that_was_done(
    folder: Path, source: Recorded, cache: Path, level: str
) -> None:
    whole = Counting()
    expected = run(folder, source.folder, level, whole)
    assert saved_names(cache) == []
    assert {finding.code for finding in expected.findings} >= {"W2", "W3", "B1"}
    ((_, _, total),) = whole.started
    saved = []
    for left in (1, 4, 3):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, folder, source.folder, str(left), level],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        assert killed.returncode == -signal.SIGKILL
        saved.append([name for name in saved_names(cache) if name.endswith(".json")])
    assert (saved[0], saved[1]) == ([], saved[2])
    assert len(saved[2]) == 1
    observer = Counting()
    assert run(folder, source.folder, level, observer) == expected
    ((_, done, again),) = observer.started
    assert again == total
    assert 0.1 * total < done < total  # three shards and two
    assert observer.nbytes <= whole.nbytes - done
    assert saved_names(cache) == []
    anew = Counting()
    assert run(folder, source.folder, level, anew) == expected
    assert (anew.started, anew.nbytes) == ([("verify", 0, total)], whole.nbytes)


class Interrupting(Counting):
    """Stops after so many blocks, as Ctrl-C does."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.left = blocks

    def advance(self, nbytes: int) -> None:
        super().advance(nbytes)
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def interrupt(folder: Path, source: Path, level: str, blocks: int = 200) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, source, level, Interrupting(blocks))


def test_a_shard_that_was_touched_is_read_again(
    folder: Path, source: Recorded, cache: Path
) -> None:
    interrupt(folder, source.folder, "source")
    (name,) = saved_names(cache)
    data = (cache / name).read_bytes()

    def done() -> int:
        (cache / name).write_bytes(data)
        observer = Counting()
        run(folder, source.folder, "source", observer)
        return observer.started[0][1]

    first = done()
    assert first > 0
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.touch()
    second = done()
    assert second < first
    next(iter(sorted(source.folder.glob("model-0000[2-4]*.safetensors")))).touch()
    assert done() < second
    # A byte that changes without its length: found, although the shard had been done.
    raw("model.embed_tokens.weight", assign((0, 0), 0x7F80))(folder)
    (cache / name).write_bytes(data)
    result = run(folder, source.folder, "source", Counting())
    assert any("model.embed_tokens.weight" in finding.tensors for finding in result.findings)


def test_results_of_one_level_are_none_of_the_other(
    folder: Path, source: Recorded, cache: Path
) -> None:
    interrupt(folder, source.folder, "values")
    observer = Counting()
    run(folder, source.folder, "source", observer)
    assert observer.started[0][1] == 0
    assert len(saved_names(cache)) == 1  # of the level of values


def test_another_manifest_makes_all_be_read_again(
    folder: Path, source: Recorded, cache: Path
) -> None:
    interrupt(folder, source.folder, "values")
    manifest = folder / "glmquant_manifest.json"
    manifest.write_text(manifest.read_text().replace('"xxh3_128": "', '"xxh3_128": "f'))
    observer = Counting()
    run(folder, source.folder, "values", observer)
    assert observer.started[0][1] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": 1}',
        pytest.param(None, id="shards of another kind"),
    ],
)
def test_a_cache_of_anything_is_no_harm(
    folder: Path, source: Recorded, cache: Path, data: bytes | None
) -> None:
    expected = run(folder, source.folder, "values", Counting())
    interrupt(folder, source.folder, "values")
    (name,) = saved_names(cache)
    if data is None:
        data = (cache / name).read_bytes().replace(b'"flaws":', b'"laws":')
    write_cached(name, data)
    observer = Counting()
    assert run(folder, source.folder, "values", observer) == expected
    assert observer.started[0][1] == 0


def test_without_a_cache_all_goes_as_well(
    folder: Path, source: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache's folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    found: list[tuple[Finding, ...]] = []
    for level in ("values", "source"):
        result: SourceResult = run(folder, source.folder, level, Counting())
        found.append(result.findings)
    assert all(found)


def test_the_folders_are_told_apart_by_their_paths(
    folder: Path, source: Recorded, tmp_path: Path, cache: Path
) -> None:
    mine, theirs = FolderSource(folder), FolderSource(source.folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    names = {Saved(mine, None).name, Saved(mine, theirs).name, Saved(theirs, None).name}
    assert len(names) == 3
    assert Saved(FolderSource(link), None).name in names
    remove_cached("verify-none.json")
