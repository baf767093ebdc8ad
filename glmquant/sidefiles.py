"""Which files of the source go along as they are: a rule on names, no list of what to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from glmquant.glm4_moe import CONFIG_FILE
from glmquant.index import INDEX_FILE
from glmquant.manifest import MANIFEST_FILE

WEIGHT_SUFFIXES: Final = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
    ".npy",
    ".zip",
    ".tar",
    ".gz",
)
UNFINISHED: Final = (".part", ".incomplete", ".aria2", ".crdownload")
"""What downloads leave that did not end, and runs of ours."""

CHECKSUM_SUFFIXES: Final = (".sha256", ".sha1", ".md5", ".sha512", ".sha256sum", ".md5sum", ".sum")
_CHECKSUMS: Final = re.compile(r"(sha\d+|md5|b2|b3|xxh\w*|check)[-_]?sums?")
_README: Final = re.compile(r"readme[^.]*(\.(md|rst|txt))?")


def side_files(files: Iterable[str]) -> tuple[str, ...]:
    """The files that go into the target as they are.

    All but weights of any format, indexes, config.json, a manifest of ours, checksums of the
    source's files, and the README, which describes the BF16 weights. Hidden files are not listed to
    begin with.

    Args:
        files: Names relative to the source.

    Returns:
        The names to copy, in the given order.
    """
    return tuple(name for name in files if _is_side_file(PurePosixPath(name)))


def left_behind(files: Iterable[str]) -> tuple[str, ...]:
    """The files that neither go along nor have a counterpart in the output, worth a word.

    Args:
        files: Names relative to the source, without its shards.
    """
    replaced = {CONFIG_FILE, MANIFEST_FILE, INDEX_FILE}
    return tuple(
        name
        for name in files
        if name not in replaced
        and not _is_side_file(PurePosixPath(name))
        and not _README.fullmatch(name.lower())
    )


def _is_side_file(path: PurePosixPath) -> bool:
    lower = path.name.lower()
    return not (
        str(path) in (CONFIG_FILE, MANIFEST_FILE)
        or lower.endswith(WEIGHT_SUFFIXES + CHECKSUM_SUFFIXES + (".index.json",))
        or _CHECKSUMS.fullmatch(path.stem.lower())
        or (len(path.parts) == 1 and _README.fullmatch(lower))
    )
