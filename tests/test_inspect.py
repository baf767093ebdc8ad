"""``glmquant inspect``: what it prints, what it takes, and that no folder makes it fail badly."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.cli import main
from glmquant.header import build_header
from tests.builders import Recorded, build_checkpoint, tensor_list, write_shard
from tests.conftest import Ran
from tests.foreign import FOREIGN, INDEX, edit_config
from tests.test_identify import release_config

Run = Callable[..., Ran]
SHARD = "model-00002-of-00003.safetensors"


def inspected(glmquant: Run, *words: object) -> dict[str, Any]:
    """The one JSON object of a folder that could be described."""
    ran = glmquant("inspect", *words, "--json")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr == ""
    (event,) = ran.events
    assert event["event"] == "inspect"
    return event


def pairs(findings: list[dict[str, str]]) -> dict[str, str]:
    return {each["where"]: each["what"] for each in findings}


def test_the_first_line_says_all_and_the_last_what_comes_next(
    nano: Recorded, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nano.folder.parent)
    ran = glmquant("inspect", "GLM")
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    size = sum(len(data) for _, _, data in nano.tensors.values())
    assert lines[0] == (
        f"GLM: GLM-4 MoE of another size, BF16, {size / 1000:.2f} kB in 4 shards, "
        "MTP layer 4 in mtp.safetensors"
    )
    assert lines[1].split() == ["role", "dtypes", "tensors", "bytes"]
    assert [line for line in lines if line.startswith("  MTP")] == [
        "  MTP     32 tensors, 10.32 kB, float (BF16 F32), no embed_tokens or head of its own, "
        "in the index, announced by config.json"
    ]
    assert lines[-1] == "next: glmquant plan GLM --add-mtp"
    assert "missing:" not in lines
    assert "found:" not in lines


def test_the_json_object_counts_every_tensor(nano: Recorded, glmquant: Run) -> None:
    event = inspected(glmquant, nano.folder)
    sizes = {name: len(data) for name, (_, _, data) in nano.tensors.items()}
    mtp = [name for name in sizes if name.startswith(nano.mtp_prefix)]
    assert event.keys() == {
        "event", "folder", "model", "format", "weights", "roles", "files", "mtp", "missing",
        "findings", "next",
    }  # fmt: skip
    assert event["model"] == {
        "text": "GLM-4 MoE of another size",
        "architecture": "Glm4MoeForCausalLM",
        "is_glm4_moe": True,
        "releases": [],
    }
    assert event["format"] == {
        "text": "BF16",
        "name": "BF16",
        "detail": "",
        "tool": None,
        "evidence": "the dtypes in the shards' headers",
    }
    assert event["weights"]["tensors"] == len(sizes)
    assert event["weights"]["nbytes"] == sum(sizes.values())
    assert sum(row["nbytes"] for row in event["roles"]) == sum(sizes.values())
    assert event["mtp"] == {
        "announced": 1,
        "layers": [4],
        "files": ["mtp.safetensors"],
        "not_in_index": [],
        "unread": [],
        "kind": "float",
        "tensors": len(mtp),
        "nbytes": sum(sizes[name] for name in mtp),
        "dtypes": {"BF16": sum(sizes[name] for name in mtp) - 16, "F32": 16},
        "has_embed_tokens": False,
        "has_head": False,
    }
    assert event["files"] == [
        {
            "file": path.name,
            "nbytes": path.stat().st_size,
            "tensors": sum(file == path.name for file in nano.shard_of.values()),
            "in_index": True,
        }
        for path in sorted(nano.folder.glob("*.safetensors"))
    ]
    assert (event["missing"], event["findings"]) == ([], [])


@pytest.mark.parametrize("case", sorted(FOREIGN))
def test_each_format_is_described_to_its_end(case: str, tmp_path: Path, glmquant: Run) -> None:
    FOREIGN[case].build(tmp_path / "GLM")
    ran = glmquant("inspect", tmp_path / "GLM")
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert f", {FOREIGN[case].text}, " in lines[0]
    assert f"  format  told by {FOREIGN[case].evidence}" in lines
    is_verifiable = case.startswith("modelslim")
    assert lines[-1].startswith("next: glmquant verify " if is_verifiable else "next: none: ")
    event = inspected(glmquant, tmp_path / "GLM")
    assert event["format"]["text"] == FOREIGN[case].text
    assert event["missing"] == [] and event["findings"] == []


def test_a_whole_release_is_told_from_its_headers(tmp_path: Path, glmquant: Run) -> None:
    config = release_config("4.6")
    folder = tmp_path / "GLM-4.6"
    build_checkpoint(folder)
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    files: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, dtype, shape in tensor_list(config, mtp_copies=False):
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        file = "mtp" if layer == 92 else f"model-{layer + 1:05d}-of-00092"
        files.setdefault(f"{file}.safetensors", []).append((name, dtype, shape))
    weight_map: dict[str, str] = {}
    for file, tensors in files.items():
        header, nbytes = build_header(tensors)
        (folder / file).write_bytes(header)
        os.truncate(folder / file, len(header) + nbytes)  # no block of data is kept
        weight_map |= {name: file for name, *_ in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    ran = glmquant("inspect", folder)
    assert ran.stdout.splitlines()[0] == (
        "GLM-4.6: GLM-4 MoE, fits GLM-4.6, BF16, 713.57 GB in 93 shards, "
        "MTP layer 92 in mtp.safetensors"
    )
    assert inspected(glmquant, folder)["weights"]["tensors"] == 44_689


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("text", ["", "[]", "null", "{", "7", '{"a": 1, "a": 2}', "[" * 100_000])
def test_json_that_cannot_be_read_is_a_finding(
    nano: Recorded, glmquant: Run, name: str, text: str
) -> None:
    (nano.folder / name).write_text(text)
    event = inspected(glmquant, nano.folder)
    assert event["format"]["name"] == "BF16"
    assert name in pairs(event["findings"])


@pytest.mark.parametrize("left", [0, 5, 8, 100, 2000])
def test_one_broken_header_is_a_finding_and_the_rest_is_told(
    nano: Recorded, glmquant: Run, left: int
) -> None:
    os.truncate(nano.folder / SHARD, left)
    event = inspected(glmquant, nano.folder)
    assert event["format"]["name"] == "BF16"
    assert event["weights"]["tensors"] == sum(file != SHARD for file in nano.shard_of.values())
    assert "a safetensors file is broken" in pairs(event["findings"])[SHARD]
    assert event["missing"] == []  # its tensors are not named once more
    assert "in 4 shards (1 unreadable)" in glmquant("inspect", nano.folder).stdout
    assert "w8a8 would refuse" in event["next"]


def test_missing_shards_and_tensors_are_named(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / SHARD).unlink()
    event = inspected(glmquant, nano.folder)
    assert pairs(event["missing"]) == {SHARD: "1 of 4 shards that the index names"}
    assert event["next"].startswith("fetch the missing shards")


def test_router_biases_that_a_tool_left_out_are_counted(nano: Recorded, glmquant: Run) -> None:
    from tests.foreign import write_shards

    biases = [name for name in nano.tensors if name.endswith("e_score_correction_bias")]
    for name in biases:
        del nano.tensors[name], nano.shard_of[name]
    write_shards(nano)
    assert inspected(glmquant, nano.folder)["missing"] == [
        {"where": f"{biases[0]} and 2 more", "what": "3 router_bias tensors"}
    ]


def test_an_mtp_layer_that_is_announced_and_gone_is_missing(nano: Recorded, glmquant: Run) -> None:
    from tests.foreign import write_shards

    for name in [name for name in nano.tensors if name.startswith(nano.mtp_prefix)]:
        del nano.tensors[name], nano.shard_of[name]
    (nano.folder / "mtp.safetensors").unlink()
    write_shards(nano)
    event = inspected(glmquant, nano.folder)
    assert event["missing"] == [
        {
            "where": "MTP",
            "what": "layers that config.json announces: 1, the weights hold none",
        }
    ]
    assert event["mtp"]["kind"] == "none"
    assert glmquant("inspect", nano.folder).stdout.splitlines()[0].endswith(", no MTP layer")
    assert event["next"] == f"glmquant plan {nano.folder}"


@pytest.mark.parametrize("is_indexed", [True, False])
def test_an_mtp_file_that_cannot_be_read_is_not_called_missing(
    tmp_path: Path, glmquant: Run, is_indexed: bool
) -> None:
    folder = build_checkpoint(tmp_path / "GLM", "4.6" if is_indexed else "4.7").folder
    os.truncate(folder / "mtp.safetensors", 100)
    event = inspected(glmquant, folder)
    assert event["mtp"]["unread"] == ["mtp.safetensors"] * is_indexed
    first = glmquant("inspect", folder).stdout.splitlines()[0]
    if is_indexed:
        assert event["missing"] == []
        assert first.endswith(", MTP layer in mtp.safetensors, which cannot be read")
    else:
        assert first.endswith(", no MTP layer in what can be read")


def test_missing_side_files_and_index_are_named(nano: Recorded, glmquant: Run) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", INDEX):
        (nano.folder / name).unlink()
    assert pairs(inspected(glmquant, nano.folder)["missing"]) == {
        INDEX: "the index of 4 shards",
        "tokenizer.json": "no tokenizer",
        "chat_template.jinja": "no chat template",
        "generation_config.json": "no such file",
    }
    (nano.folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    assert "chat_template.jinja" not in pairs(inspected(glmquant, nano.folder)["missing"])


def test_what_index_and_shards_disagree_about_is_found(nano: Recorded, glmquant: Run) -> None:
    name = next(iter(nano.tensors))
    index = json.loads((nano.folder / INDEX).read_bytes())
    index["weight_map"][name] = "mtp.safetensors"
    (nano.folder / INDEX).write_text(json.dumps(index))
    write_shard(nano.folder / "stray.safetensors", {name: nano.tensors[name]})
    findings = pairs(inspected(glmquant, nano.folder)["findings"])
    assert findings == {
        "stray.safetensors": "not in the index",
        "*.safetensors": "tensors that are there twice: 1",
        name: "tensors that are not where the index puts them: 1",
    }


def test_a_config_without_weights_is_described(nano: Recorded, glmquant: Run) -> None:
    for path in nano.folder.glob("*.safetensors"):
        path.unlink()
    first = glmquant("inspect", nano.folder).stdout.splitlines()[0]
    assert first == "GLM: GLM-4 MoE of another size, no weights"
    missing = pairs(inspected(glmquant, nano.folder)["missing"])
    assert missing["weights"] == "no file of weights"
    assert "4 of 4 shards that the index names" in missing.values()


def test_git_lfs_pointers_and_unfinished_downloads_are_named(nano: Recorded, glmquant: Run) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5363469312\n"
    (nano.folder / SHARD).write_text(pointer)
    (nano.folder / "a.safetensors.part").write_bytes(b"")
    downloads = nano.folder / ".cache/huggingface/download"
    downloads.mkdir(parents=True)
    (downloads / "x.incomplete").write_bytes(b"")
    findings = pairs(inspected(glmquant, nano.folder)["findings"])
    assert findings == {
        SHARD: "a Git LFS pointer, not the weights: git lfs pull",
        "a.safetensors.part": "the rest of a download that did not end",
        ".cache/huggingface/download": "downloads of huggingface_hub did not end",
    }


def test_an_unfinished_download_alone_is_described(tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "model-00001-of-00092.safetensors.incomplete").write_bytes(b"")
    event = inspected(glmquant, tmp_path)
    assert event["format"]["name"] == "no weights"
    assert len(event["findings"]) == 1


def test_a_run_of_ours_that_did_not_end_is_named(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / ".glmquant").mkdir()
    (nano.folder / ".glmquant/journal.json").write_text("{}")
    findings = pairs(inspected(glmquant, nano.folder)["findings"])
    assert findings == {".glmquant": "a run of glmquant that did not end"}


def test_pipes_loops_dead_links_and_odd_names_are_findings(nano: Recorded, glmquant: Run) -> None:
    folder = nano.folder
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    (folder / "dead.safetensors").symlink_to("../gone")
    (folder / "loop").symlink_to("loop")
    (folder / "back").symlink_to(folder)
    (folder / "folder.safetensors").mkdir()
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "line\nbreak.safetensors").write_bytes(b"")
    with open(os.path.join(os.fsencode(folder), b"\xff.txt"), "wb"):  # noqa: PTH118, PTH123
        pass
    (folder / "empty.safetensors").write_bytes(b"")
    event = inspected(glmquant, folder)
    findings = pairs(event["findings"])
    assert findings.keys() == {
        "pipe.safetensors", "tokenizer.json", "dead.safetensors", "loop", "folder.safetensors",
        "zero.safetensors", "line\\nbreak.safetensors", "\\udcff.txt", "empty.safetensors",
    }  # fmt: skip
    assert event["weights"]["tensors"] == len(nano.tensors)
    assert glmquant("inspect", folder).exit_code == 0


def test_a_config_that_is_a_pipe_is_not_waited_for(
    nano: Recorded, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nano.folder / "config.json").unlink()
    os.mkfifo(nano.folder / "config.json")
    monkeypatch.chdir(nano.folder.parent)
    assert "config.json" in pairs(inspected(glmquant)["findings"])
    for path in nano.folder.glob("*.safetensors*"):
        path.unlink()
    assert glmquant("inspect").exit_code == 2


def test_a_config_that_calls_for_too_much_is_not_believed(nano: Recorded, glmquant: Run) -> None:
    edit_config(nano.folder, num_hidden_layers=1000, n_routed_experts=10_000)
    event = inspected(glmquant, nano.folder)
    assert "not believed" in pairs(event["missing"])["config.json"]
    assert "w8a8 would refuse: config.json contradicts itself" in event["next"]


def test_ten_thousand_files_are_looked_at_and_few_are_printed(
    nano: Recorded, glmquant: Run
) -> None:
    for number in range(10_000):
        (nano.folder / f"x{number:05d}.safetensors").touch()
    lines = glmquant("inspect", nano.folder).stdout.splitlines()
    assert len(lines) < 60
    assert "  and 9988 more: --json lists all" in lines
    assert len(inspected(glmquant, nano.folder)["findings"]) == 10_000


def test_dir_may_be_left_out_where_one_model_of_any_format_is_here(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    FOREIGN["gguf"].build(tmp_path / "models/GLM-GGUF")
    (tmp_path / "models/notes").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    assert inspected(glmquant)["folder"] == "GLM-GGUF"
    monkeypatch.chdir(tmp_path / "models/GLM-GGUF")
    assert inspected(glmquant)["format"]["name"] == "GGUF"
    build_checkpoint(tmp_path / "models/GLM-4.6")
    monkeypatch.chdir(tmp_path / "models")
    ran = glmquant("inspect")
    assert ran.exit_code == 2
    assert "GLM-4.6, GLM-GGUF" in ran.stderr
    assert "hint:     glmquant inspect GLM-4.6" in ran.stderr
    monkeypatch.chdir(tmp_path / "models/notes")
    assert glmquant("inspect").exit_code == 2


def test_exit_codes_tell_no_folder_from_nothing_in_it(tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    codes = {
        name: glmquant("inspect", tmp_path / name).exit_code
        for name in ("nowhere", "file", "pipe", "empty", "x" * 300)
    }
    assert codes == {"nowhere": 2, "file": 2, "pipe": 2, "empty": 1, "x" * 300: 2}
    assert "this is not a model folder" in glmquant("inspect", tmp_path / "empty").stderr


def test_no_weight_is_read(nano: Recorded, glmquant: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from glmquant.source import FolderSource

    begins = {
        path.name: 8 + int.from_bytes(path.read_bytes()[:8], "little")
        for path in nano.folder.glob("*.safetensors")
    }
    read = FolderSource.read

    def checked(self: FolderSource, file: str, offset: int, nbytes: int) -> bytes:
        assert offset + nbytes <= begins.get(file, 1 << 30)
        return read(self, file, offset, nbytes)

    monkeypatch.setattr(FolderSource, "read", checked)
    assert inspected(glmquant, nano.folder)["weights"]["tensors"] == len(nano.tensors)


def test_the_good_path_of_w8a8_reads_each_header_once(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glmquant.checkpoint import open_checkpoint
    from glmquant.source import FolderSource

    reads: list[str] = []
    read = FolderSource.read

    def counted(self: FolderSource, file: str, offset: int, nbytes: int) -> bytes:
        reads.append(file)
        return read(self, file, offset, nbytes)

    monkeypatch.setattr(FolderSource, "read", counted)
    open_checkpoint(FolderSource(nano.folder))
    shards = sorted(path.name for path in nano.folder.glob("*.safetensors"))
    assert sorted(reads) == sorted([*shards, *shards, "config.json", INDEX])  # length, then text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
KEYS = (
    "architectures", "model_type", "quantization_config", "quantization", "quantize",
    "compression_config", "num_hidden_layers", "num_nextn_predict_layers", "hidden_size",
    "n_routed_experts", "torch_dtype", "dtype", "max_position_embeddings", "weight_map",
    "chat_template", "tool", "producer", "settings",
)  # fmt: skip
MARK_KEYS = (
    "quant_method", "bits", "group_size", "format", "version", "config_groups", "meta", "provider",
    "weight_block_size", "load_in_4bit", "quant_algo", "producer", "model_quant_type",
    "quantization",
)  # fmt: skip


def put(path: Path, data: bytes | bytearray) -> None:
    """Write a file anew, whatever was there: writing into a pipe would wait for ever."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def damage(folder: Path, kind: str, value: Any, seed: int) -> None:
    """One kind of harm to one file of the folder."""
    chance = random.Random(seed)
    path = chance.choice(sorted(path for path in folder.iterdir() if not path.is_dir()))
    data = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    if kind == "key" and path.suffix == ".json":
        try:
            fields = json.loads(data)
        except ValueError:
            return
        if isinstance(fields, dict):
            fields[chance.choice([*KEYS, *fields])] = value
            put(path, json.dumps(fields).encode())
    elif kind == "mark":
        mark = {
            chance.choice(MARK_KEYS): value,
            "quant_method": chance.choice(["gptq", "fp8", value]),
        }
        fields = {"architectures": [value], "quantization_config": mark}
        put(folder / "config.json", json.dumps(fields).encode())
    elif kind == "cut":
        put(path, data[: chance.randrange(len(data) + 1)])
    elif kind == "flip" and data:
        data[chance.randrange(min(len(data), 4000))] = chance.randrange(256)
        put(path, data)
    elif kind == "gone":
        path.unlink()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "dead link":
        path.unlink()
        path.symlink_to(path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "stranger":
        suffix = chance.choice([".safetensors", ".gguf", ".bin", ".index.json", ".part"])
        (folder / f"other{seed}{suffix}").write_bytes(bytes(data[: chance.randrange(99)]))
    elif kind == "beside":
        names = ("quant_model_description.json", "glmquant_manifest.json", "hf_quant_config.json",
                 "quantize_config.json", "quant_config.json", "quantization_config.json",
                 "tokenizer_config.json", "x.safetensors.index.json")  # fmt: skip
        content = {chance.choice([*KEYS, *MARK_KEYS]): value}
        put(folder / chance.choice(names), json.dumps(content).encode())


KINDS = (
    "key", "mark", "cut", "flip", "gone", "pipe", "dead link", "folder", "stranger", "beside",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(["bf16", "gptqmodel", "modelslim v0", "gguf", "nvfp4 of modelopt"]),
    harms=st.lists(
        st.tuples(st.sampled_from(KINDS), JSON_VALUES, st.integers(0, 10**6)), max_size=5
    ),
)
def test_a_damaged_folder_is_described_or_refused_and_never_crashes(
    case: str, harms: list[tuple[str, Any, int]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "GLM"
        if case == "bf16":
            build_checkpoint(folder)
        else:
            FOREIGN[case].build(folder)
        for kind, value, seed in harms:
            if any(not path.is_dir() for path in folder.iterdir()):
                damage(folder, kind, value, seed)
        for flags in ([], ["--json"]):
            result = CliRunner().invoke(main, ["inspect", str(folder), *flags])
            assert result.exception is None or isinstance(result.exception, SystemExit)
            assert result.exit_code in (0, 1)
            assert "refused a file" not in result.stderr  # an OSError that nobody foresaw
            assert "\x1b" not in result.stdout


def test_text_of_a_config_cannot_reach_the_terminal_as_it_is(nano: Recorded, glmquant: Run) -> None:
    hostile = "\x1b]0;owned\x07\n" * 50
    edit_config(
        nano.folder,
        architectures=[hostile],
        model_type=hostile,
        quantization_config={"quant_method": hostile, "meta": {"quantizer": [hostile]}},
    )
    shown = glmquant("inspect", nano.folder).stdout
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 400


def test_an_interrupted_run_is_called_that_and_goes_on(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    target = tmp_path / "out"
    glmquant("w8a8", nano.folder, target, "--add-mtp")
    (target / "config.json").unlink()
    (target / ".glmquant").mkdir()
    (target / ".glmquant/journal.json").write_text("{}")
    (target / "mtp.safetensors").rename(target / "mtp.safetensors.part")
    ran = glmquant("inspect", target)
    lines = ran.stdout.splitlines()
    assert "an unfinished output, by glmquant" in lines[0]
    assert any("the rest of a run that did not end" in line for line in lines)
    assert lines[-1].startswith("next: the same glmquant w8a8 command once more")
    refused = glmquant("w8a8", target, tmp_path / "other")
    assert refused.exit_code == 1
    assert "an unfinished output, by glmquant" in refused.stderr


def test_without_an_index_the_mtp_layer_is_in_none(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / "model.safetensors.index.json").unlink()
    lines = glmquant("inspect", nano.folder).stdout.splitlines()
    assert [", no index, " in line for line in lines if line.startswith("  MTP ")] == [True]
