"""What of a repository is wanted: all, files by pattern, layers by the names of their tensors."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from glmquant.errors import NoMtpError, UsageError
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.hubs.remote import Model
from glmquant.reconcile import listing as named
from glmquant.tensor_names import is_router_bias, layer_of
from glmquant.tensors import TensorRef

MTP: Final = "mtp"
METADATA: Final = "metadata"
MAX_LAYER: Final = 1000

_SPAN: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_WITNESSES: Final = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_LAST_NORM: Final = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Selection:
    """What the command line asks for.

    Attributes:
        only: ``mtp``, ``metadata``, ``layers=…`` or None for all.
        layers: Of ``layers=…``, sorted.
        include: Patterns, one of which a file's path has to match; none for any file.
        exclude: Patterns, none of which it may match.
        is_for_graft: Of what is no weight only config.json, which a graft reads.
    """

    only: str | None = None
    layers: tuple[int, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    is_for_graft: bool = False

    @property
    def by_tensors(self) -> bool:
        """Whether tensors are chosen, not files."""
        return self.only is not None and self.only != METADATA

    @property
    def words(self) -> tuple[str, ...]:
        """As on the command line."""
        words = ["--only", self.only] if self.only else []
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                words += [option, pattern]
        return tuple(words)

    @property
    def text(self) -> str:
        """For records and people."""
        return shlex.join(self.words) or "all"


def parse_selection(
    only: str | None, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Selection:
    """What the options mean.

    Raises:
        UsageError: They cannot be meant that way.
    """
    patterns = tuple(include), tuple(exclude)
    if only is None or only == METADATA:
        return Selection(only, (), *patterns)
    if any(patterns):
        raise UsageError(
            "tensors are chosen by --only, and files by --include and --exclude: not both",
            where=f"--only {only}",
            expected="one of them",
            found=named([*patterns[0], *patterns[1]]),
            hint=f"leave the patterns out: --only {only} takes as little as it can",
        )
    if only == MTP:
        return Selection(only)
    key, equals, text = only.partition("=")
    spans = [_SPAN.fullmatch(each.strip()) for each in text.split(",")]
    if key != "layers" or not equals or not all(spans):
        raise _misread(only, "another text")
    layers: set[int] = set()
    for span in spans:
        if span is not None:
            first, last = int(span[1]), int(span[2] or span[1])
            if last < first or last > MAX_LAYER:
                raise _misread(only, span[0])
            layers |= set(range(first, last + 1))
    return Selection(only, tuple(sorted(layers)))


def _misread(only: str, found: str) -> UsageError:
    return UsageError(
        "--only cannot be read",
        where=f"--only {only}",
        expected=f"mtp, metadata, or layers=0-3,92, at most {MAX_LAYER}",
        found=found,
        hint="glmquant fetch MODEL --only mtp",
    )


def match_files(paths: Iterable[str], selection: Selection) -> tuple[str, ...]:
    """The paths that the patterns leave; config.json is matched like any other.

    Raises:
        UsageError: A pattern matches nothing, or nothing is left.
    """
    paths = list(paths)
    left = set(paths)
    for patterns, is_include in ((selection.include, True), (selection.exclude, False)):
        hit: set[str] = set()
        for pattern in patterns:
            matched = {path for path in paths if _matches(path, pattern)}
            if not matched:
                raise UsageError(
                    "a pattern matches no file of the repository",
                    where=f"--{'include' if is_include else 'exclude'} {pattern}",
                    expected="a file's path or name, with * ? [ ]",
                    found=f"{len(paths)} files: {named(paths, 5)}",
                    hint="quote the pattern, so that the shell leaves it alone",
                )
            hit |= matched
        if patterns:
            left = left & hit if is_include else left - hit
    if not left:
        raise UsageError(
            "the patterns leave no file",
            where=selection.text,
            expected="at least one file",
            found=f"none of {len(paths)}",
            hint="glmquant fetch MODEL --dry-run lists what would come",
        )
    return tuple(path for path in paths if path in left)


def _matches(path: str, pattern: str) -> bool:
    pattern = pattern.rstrip("/") + "/*" if pattern.endswith("/") else pattern
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.rpartition("/")[2], pattern
    )


def choose_tensors(model: Model, selection: Selection) -> dict[str, TensorRef]:
    """The tensors that are wanted, by name.

    With the MTP layer come the router biases of all layers and the norms of the body that no
    quantizer changes: ``add-mtp`` grafts the ones and knows the model by the others.

    Raises:
        NoMtpError: There is no MTP layer.
        UsageError: There is no such layer.
    """
    tensors = model.tensors()
    if selection.only == MTP:
        first = model.num_hidden_layers
        chosen = {
            name: ref
            for name, ref in tensors.items()
            if (layer := layer_of(name)) is not None and layer >= first
        }
        if not chosen:
            raise NoMtpError(
                "the repository has no MTP layer",
                where=CONFIG_FILE,
                expected=f"tensors model.layers.{first}.*",
                found=f"none in {len(model.shards)} shards",
                hint="fetch the BF16 release: glmquant models",
            )
        return chosen | {name: ref for name, ref in tensors.items() if _is_witness(name)}
    there = {layer for name in tensors if (layer := layer_of(name)) is not None}
    missing = [layer for layer in selection.layers if layer not in there]
    if missing:
        raise UsageError(
            "the repository has no such layer",
            where=f"--only {selection.only}",
            expected=f"layers {min(there)} to {max(there)}" if there else "layers",
            found=named(map(str, missing)),
            hint="the MTP layer is the last: --only mtp",
        )
    return {name: ref for name, ref in tensors.items() if layer_of(name) in selection.layers}


def _is_witness(name: str) -> bool:
    return is_router_bias(name) or name == _LAST_NORM or name.endswith(_WITNESSES)
