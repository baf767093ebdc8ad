"""Every defect of the catalogue is named by ``verify``, alone and beside another; right folders
pass without a word."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors
import xxhash

from tests.builders import Recorded, build_checkpoint
from tests.conftest import Ran
from tests.defects import (
    BASES,
    BOTH_DESCRIPTIONS,
    DEFECTS,
    LEVELS,
    RIGHT,
    Defect,
    Level,
    Parts,
    make_base,
    read_demo_model,
    read_shard,
)
from tests.modelslim import VENDOR, VENDOR_V0, Style, Tensor, make

PAIRS: Final = 60
Verify = Callable[..., Ran]


@dataclass(frozen=True)
class Bench:
    """Finished folders, made once: what defects are done to copies of."""

    room: Path
    source: Recorded

    def folder(self, base: str) -> Path:
        folder = self.room / base
        if not folder.exists():
            make_base(base, self.source, folder)
        return folder

    def copy(self, base: str, to: Path) -> Path:
        shutil.copytree(self.folder(base), to)
        return to


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    room = tmp_path_factory.mktemp("bench")
    return Bench(room, build_checkpoint(room / "source"))


def words(level: Level, source: Path) -> list[str]:
    """The options that make ``verify`` look that deep."""
    return {
        "files": [],
        "values": ["--deep"],
        "source": ["--deep", "--source", str(source)],
    }[level]


def report(ran: Ran) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert event["event"] == "verify", event
    worst = {finding["severity"] for finding in event["findings"]}
    verdict = "findings" if "error" in worst else "warnings" if worst else "clean"
    assert (event["verdict"], ran.exit_code) == (verdict, int("error" in worst)), event
    return event


def told(event: dict[str, Any]) -> list[str]:
    """The findings in short, for a test that fails."""
    return [
        f"{f['code']} {f['severity']} {f['level']}: {f['what']} | {f['where']} | {f['tensors'][:3]}"
        for f in event["findings"]
    ]


def names_it(event: dict[str, Any], defect: Defect, named: str) -> bool:
    """Whether a finding has the defect's code and severity and says where it is."""
    return any(
        finding["code"] in defect.codes
        and finding["severity"] == defect.severity
        and any(named in text for text in (finding["where"] or "", *finding["tensors"]))
        for finding in event["findings"]
    )


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_named_at_its_level(
    glmquant: Verify, bench: Bench, tmp_path: Path, defect: Defect
) -> None:
    folder = bench.copy(defect.base, tmp_path / "GLM")
    named = defect.apply(folder)
    for level in (defect.level, LEVELS[-1]):
        deeper = words(level, bench.source.folder)
        event = report(glmquant("verify", folder, *deeper, *defect.options, "--json"))
        assert names_it(event, defect, named), (defect.code, named, told(event))


@pytest.mark.parametrize("base", ["glmquant", "embedded", *BASES])
def test_what_defects_are_done_to_is_clean(glmquant: Verify, bench: Bench, base: str) -> None:
    for level in LEVELS:
        deeper = words(level, bench.source.folder)
        event = report(glmquant("verify", bench.folder(base), *deeper, "--json"))
        assert told(event) == []
        assert event["levels"][-1] == level


def changed(before: Path, after: Path) -> set[str]:
    """What a defect touched: linears by their names, keys of JSON files, files.

    A shard that cannot be read stands for all tensors that were in it.
    """
    touched: set[str] = set()
    files = {path.name for folder in (before, after) for path in folder.iterdir()}
    for file in files:
        old, new = before / file, after / file
        if file == "assets" or (new.is_file() and old.is_file() and _same(old, new)):
            continue
        if file.endswith(".safetensors"):
            touched |= _changed_items(_tensors(old), _tensors(new), file)
        elif file.endswith(".json"):
            touched |= _changed_items(_keys(old), _keys(new), file)
        else:
            touched.add(f"file {file}")
    return touched


def _same(old: Path, new: Path) -> bool:
    return old.read_bytes() == new.read_bytes() and old.stat().st_mode == new.stat().st_mode


def _changed_items(
    old: dict[str, object] | None, new: dict[str, object] | None, file: str
) -> set[str]:
    """Names whose entries differ, as the linear they belong to."""
    if old is None or new is None or old == new:
        return {f"file {file}", *(_linear(name) for name in old or {})}
    return {_linear(name) for name in {*old, *new} if old.get(name) != new.get(name)}


def _linear(name: str) -> str:
    """The tensor's name before its last dot; a key of config.json stays as it is."""
    return name.rpartition(".")[0] or name


def _tensors(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    try:
        return dict(read_shard(path))
    except (OSError, safetensors.SafetensorError):
        return None


def _keys(path: Path) -> dict[str, object] | None:
    """The keys of a JSON object; of an index, those of its weight map alone."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    weight_map = fields.get("weight_map")
    return weight_map if isinstance(weight_map, dict) else fields


def can_be_edited(folder: Path) -> bool:
    """Whether another defect can still be done to it."""
    if not all(path.is_file() for path in folder.glob("*.safetensors")):
        return False
    try:
        Parts(folder)
    except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError):
        return False
    return True


def compatible_pairs(room: Path, bench: Bench) -> list[tuple[Defect, Defect]]:
    """Pairs that leave each other visible; what breaks a file comes second."""
    base = bench.folder("glmquant")
    single = [each for each in DEFECTS.values() if each.base == "glmquant" and not each.options]
    touched: dict[str, set[str]] = {}
    breaking = set()
    for number, defect in enumerate(single):
        folder = bench.copy("glmquant", room / str(number))
        defect.apply(folder)
        touched[defect.name] = changed(base, folder)
        if not can_be_edited(folder):
            breaking.add(defect.name)
        shutil.rmtree(folder)
    generator = random.Random(4)
    pairs: list[tuple[Defect, Defect]] = []
    while len(pairs) < PAIRS:
        first, second = sorted(
            generator.sample(single, 2), key=lambda defect: defect.name in breaking
        )
        hidden = first.codes <= second.hides or second.codes <= first.hides
        if not hidden and not touched[first.name] & touched[second.name]:
            pairs.append((first, second))
    return pairs


def test_two_defects_are_both_named(glmquant: Verify, bench: Bench, tmp_path: Path) -> None:
    missed = []
    for number, pair in enumerate(compatible_pairs(tmp_path, bench)):
        folder = bench.copy("glmquant", tmp_path / f"pair{number}")
        named = [defect.apply(folder) for defect in pair]
        deepest = words(LEVELS[-1], bench.source.folder)
        event = report(glmquant("verify", folder, *deepest, "--json"))
        missed += [
            (defect.name, "beside", [other.name for other in pair if other != defect], told(event))
            for defect, name in zip(pair, named, strict=True)
            if not names_it(event, defect, name)
        ]
    assert missed == []


@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT)
def test_a_right_checkpoint_is_clean(
    glmquant: Verify, tmp_path: Path, build: Callable[[Path], tuple[Path, Path]]
) -> None:
    folder, source = build(tmp_path)
    event = report(glmquant("verify", folder, "--deep", "--source", source, "--json"))
    assert told(event) == []


@pytest.mark.parametrize("name", ["optimizer.bin", "training_args.pt", "notes.txt"])
def test_a_file_that_no_engine_reads_is_no_error(
    glmquant: Verify, bench: Bench, tmp_path: Path, name: str
) -> None:
    folder = bench.copy("glmquant", tmp_path / "GLM")
    (folder / name).write_bytes(b"PK\x03\x04")
    assert glmquant("verify", folder, "--deep", "--json").exit_code == 0


@pytest.mark.parametrize(
    ("style", "codes"),
    [
        (VENDOR, {"M1", "D2", "F2"}),
        (VENDOR_V0, {"M1", "C2", "F2"}),
        (Style(mtp="f32"), {"D2"}),
        (Style(mtp="int8"), {"D2"}),
        (Style(router_biases=False), {"M1"}),
        (Style(announce=0), {"C2"}),
        (Style(mtp=None, announce=1), {"C2"}),
        (Style(shard_mode=0o600), {"F2"}),
        (Style(layout="v0", descriptions=(BOTH_DESCRIPTIONS[1],)), {"D1"}),
    ],
    ids=[
        "v1",
        "v0",
        "F32 MTP",
        "int8 MTP",
        "no router biases",
        "MTP not announced",
        "MTP announced",
        "shards of one user",
        "a description that no engine looks for",
    ],
)
def test_what_msmodelslim_leaves_is_named_and_nothing_else(
    glmquant: Verify, bench: Bench, tmp_path: Path, style: Style, codes: set[str]
) -> None:
    made = make(bench.source, tmp_path / "GLM", style)
    deepest = words(LEVELS[-1], bench.source.folder)
    event = report(glmquant("verify", made.folder, *deepest, "--json"))
    found = {finding["code"] for finding in event["findings"]}
    assert codes <= found <= codes | {"D2"}, told(event)


def test_an_mtp_layer_quantized_in_all_linears_is_an_error(
    glmquant: Verify, bench: Bench, tmp_path: Path
) -> None:
    made = make(bench.source, tmp_path / "GLM", mtp="int8 with eh_proj")
    event = report(glmquant("verify", made.folder, "--json"))
    assert any(
        finding["severity"] == "error" and any("eh_proj" in name for name in finding["tensors"])
        for finding in event["findings"]
    ), told(event)


@pytest.mark.parametrize(
    ("style", "digest"),
    [
        (replace(VENDOR, smooth=False), "76d05a4e516a692bda0ac42a769ab0ba"),
        (VENDOR_V0, "d0e5c9428146b1711203e63b3c20536a"),
    ],
    ids=["v1", "v0"],
)
def test_what_stands_for_msmodelslim_is_bit_for_bit_its_output(
    tmp_path: Path, style: Style, digest: str
) -> None:
    """The digests are those of msModelSlim 26.1.0's outputs for GLM-4-nano."""
    source = read_demo_model()
    assert tensors_digest(make(source, tmp_path / "GLM", style).tensors) == digest


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    state = xxhash.xxh3_128()
    for name, (dtype, shape, data) in sorted(tensors.items()):
        state.update(f"{name} {dtype} {shape} ".encode())
        state.update(data)
    return state.hexdigest()


def test_a_damaged_folder_is_left_as_it_was(glmquant: Verify, bench: Bench, tmp_path: Path) -> None:
    folder = bench.copy("glmquant", tmp_path / "GLM")
    DEFECTS["all scales doubled"].apply(folder)
    before = {path: path.stat() for path in sorted(folder.rglob("*"))}
    glmquant("verify", folder, *words("source", bench.source.folder), "--json")
    after = {path: path.stat() for path in sorted(folder.rglob("*"))}
    kept = ("st_mode", "st_size", "st_mtime_ns", "st_ino")
    assert [[getattr(stat, key) for key in kept] for stat in after.values()] == [
        [getattr(stat, key) for key in kept] for stat in before.values()
    ]
    assert after.keys() == before.keys()
