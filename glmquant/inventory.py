"""What a folder's tensors are for, where its MTP layer lies, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from glmquant.glm4_moe import (
    ARCHITECTURE,
    CONFIG_FILE,
    MAX_TENSORS,
    Glm4MoeConfig,
    expected_tensors,
    first_fault,
    optional_mtp_weights,
)
from glmquant.index import INDEX_FILE
from glmquant.reconcile import listing
from glmquant.survey import Finding, Survey
from glmquant.tensor_names import layer_of, role_of
from glmquant.tensors import FLOAT_DTYPES, TensorRef

OTHER_ROLE: Final = "other"
_PACKED: Final = (".qweight", ".weight_packed")
"""What GPTQ, AWQ and compressed-tensors write in place of ``.weight``."""


@dataclass(slots=True)
class Share:
    """Some of the tensors.

    Attributes:
        tensors: How many.
        nbytes: Their bytes.
        dtypes: Their dtypes and the bytes of each.
    """

    tensors: int
    nbytes: int
    dtypes: Counter[str]

    @classmethod
    def of(cls, refs: Iterable[TensorRef]) -> Share:
        """The share of these tensors."""
        share = cls(0, 0, Counter())
        for ref in refs:
            share.add(ref)
        return share

    def add(self, ref: TensorRef) -> None:
        """Count one more."""
        self.tensors += 1
        self.nbytes += ref.nbytes
        self.dtypes[ref.dtype] += ref.nbytes


@dataclass(frozen=True, slots=True)
class Mtp:
    """The MTP layers.

    Attributes:
        announced: ``num_nextn_predict_layers`` of config.json, None where it says nothing.
        layers: The layers that are there.
        files: The files that hold them.
        unindexed: Those of the files that the index does not list.
        unread: Files that hold some of them by the index, and are missing or broken.
        share: Their tensors.
        has_embed_tokens: They bring an embedding of their own.
        has_head: They bring a head of their own.
    """

    announced: int | None
    layers: tuple[int, ...]
    files: tuple[str, ...]
    unindexed: tuple[str, ...]
    unread: tuple[str, ...]
    share: Share
    has_embed_tokens: bool
    has_head: bool

    @property
    def kind(self) -> str:
        """``float``, ``int8`` or ``quantized``; ``none`` without a layer."""
        if not self.layers:
            return "none"
        if self.share.dtypes.keys() <= set(FLOAT_DTYPES):
            return "float"
        return "int8" if self.share.dtypes["I8"] else "quantized"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All tensors counted.

    Attributes:
        total: All of them.
        roles: By role, the largest first; names of no role count as ``other``.
        mtp: The MTP layers.
        missing: What should be there and is not.
        findings: Index, config and shards that do not fit each other.
    """

    total: Share
    roles: dict[str, Share]
    mtp: Mtp
    missing: tuple[Finding, ...]
    findings: tuple[Finding, ...]


def take_inventory(found: Survey) -> Inventory:
    """Count the tensors of a folder and say what is missing.

    Args:
        found: What could be read of it.

    Returns:
        The inventory.
    """
    mtp = find_mtp(found)
    layers = set(mtp.layers)
    roles: dict[str, Share] = {}
    for ref in _all_tensors(found):
        role = role_of(ref.name, layers)
        name = role.value if role else OTHER_ROLE
        roles.setdefault(name, Share(0, 0, Counter())).add(ref)
    missing = list(_missing_files(found))
    if found.shards:
        missing += _missing_mtp(mtp)
    findings = list(_index_findings(found, mtp))
    if found.shards and is_glm4_moe(found.config):
        try:
            config = Glm4MoeConfig.model_validate(found.config)
        except ValidationError as error:
            key, message = first_fault(error)
            findings.append(Finding(f"{CONFIG_FILE}: {key}", message))
        else:
            missing += _missing_tensors(found, config, mtp)
    return Inventory(
        total=Share.of(_all_tensors(found)),
        roles=dict(sorted(roles.items(), key=lambda item: -item[1].nbytes)),
        mtp=mtp,
        missing=tuple(missing),
        findings=tuple(findings),
    )


def is_glm4_moe(config: dict[str, Any]) -> bool:
    """Whether config.json names the architecture of GLM-4.5, 4.5-Air, 4.6 and 4.7."""
    return config.get("architectures") == [ARCHITECTURE]


def find_mtp(found: Survey) -> Mtp:
    """Where the MTP layers lie: those after the last, or with an ``eh_proj`` if that is unknown."""
    last = found.config.get("num_hidden_layers")
    first = last if type(last) is int else None

    def mtp_layer(name: str) -> int | None:
        layer = layer_of(name)
        is_mtp = layer is not None and (".eh_proj." in name if first is None else layer >= first)
        return layer if is_mtp else None

    layers = {mtp_layer(ref.name) for ref in _all_tensors(found)} - {None}
    refs = [ref for ref in _all_tensors(found) if layers and layer_of(ref.name) in layers]
    names = {ref.name for ref in refs}
    files = tuple(sorted({ref.file for ref in refs}))
    indexed = set(found.weight_map.values())
    numbers = sorted(layer for layer in layers if layer is not None)
    own = [optional_mtp_weights(layer) for layer in numbers]
    elsewhere = {
        file
        for name, file in found.weight_map.items()
        if file not in found.shards and mtp_layer(name) is not None
    }
    announced = found.config.get("num_nextn_predict_layers")
    return Mtp(
        announced=announced if type(announced) is int else None,
        layers=tuple(numbers),
        files=files,
        unindexed=tuple(file for file in files if indexed and file not in indexed),
        unread=tuple(sorted(elsewhere)),
        share=Share.of(refs),
        has_embed_tokens=any(embedding in names for embedding, _ in own),
        has_head=any(head in names for _, head in own),
    )


def _all_tensors(found: Survey) -> Iterator[TensorRef]:
    for tensors in found.shards.values():
        yield from tensors


def _missing_files(found: Survey) -> Iterator[Finding]:
    files = found.files
    has_safetensors = bool(found.shards or any(not f.endswith(".gguf") for f in found.broken))
    if CONFIG_FILE not in files and not found.ggufs:
        yield Finding(CONFIG_FILE, "no such file")
    if not (has_safetensors or found.ggufs or found.broken or found.other_weights):
        yield Finding("weights", "no file of weights")
    named = set(found.weight_map.values())
    gone = sorted(named - files.keys())
    if gone:
        yield Finding(listing(gone), f"{len(gone)} of {len(named)} shards that the index names")
    if not found.weight_maps and len(found.shards) > 1:
        yield Finding(INDEX_FILE, f"the index of {len(found.shards)} shards")
    if found.ggufs and not has_safetensors:
        return  # a GGUF file brings its own vocabulary and template
    if not any(name.startswith(("tokenizer.", "vocab.", "merges.")) for name in files):
        yield Finding("tokenizer.json", "no tokenizer")
    template = found.objects.get("tokenizer_config.json", {}).get("chat_template")
    if not template and not any(name.startswith("chat_template.") for name in files):
        yield Finding("chat_template.jinja", "no chat template")
    if "generation_config.json" not in files:
        yield Finding("generation_config.json", "no such file")


def _missing_mtp(mtp: Mtp) -> Iterator[Finding]:
    if mtp.announced and len(mtp.layers) < mtp.announced and not mtp.unread:
        held = len(mtp.layers) or "none"
        what = f"layers that config.json announces: {mtp.announced}, the weights hold {held}"
        yield Finding("MTP", what)


def _missing_tensors(found: Survey, config: Glm4MoeConfig, mtp: Mtp) -> Iterator[Finding]:
    """Tensors that config.json calls for, one finding a role.

    Those that the index puts into a missing or broken shard are not named once more.
    """
    if config.tensor_bound > MAX_TENSORS:
        yield Finding(CONFIG_FILE, f"calls for more than {MAX_TENSORS} tensors: not believed")
        return
    present = {ref.name for ref in _all_tensors(found)}
    if any(".switch_mlp." in name or ".experts.gate_up_proj" in name for name in present):
        return  # experts under one name, as MLX and transformers 5 hold them
    packed = {name.rpartition(".")[0] for name in present if name.endswith(_PACKED)}
    elsewhere = {name for name, file in found.weight_map.items() if file not in found.shards}
    count = min(len(mtp.layers), config.num_nextn_predict_layers or 1)
    absent: dict[str, list[str]] = {}
    for name, tensor in expected_tensors(config, count).items():
        is_there = name in present or name in elsewhere or name.removesuffix(".weight") in packed
        if tensor.is_required and not is_there:
            role = "router_bias" if tensor.is_router_bias else tensor.role.value
            absent.setdefault(role, []).append(name)
    for role, names in absent.items():
        yield Finding(listing(names, 1), f"{len(names)} {role} tensor{'s' * (len(names) > 1)}")


def _index_findings(found: Survey, mtp: Mtp) -> Iterator[Finding]:
    if len(found.weight_maps) > 1:
        yield Finding(
            ", ".join(found.weight_maps),
            f"more than one index: an engine reads {INDEX_FILE} alone",
        )
    weight_map = found.weight_map
    listed = set(weight_map.values())
    if listed:
        strays = [name for name in found.shards if name not in listed]
        if strays:
            yield Finding(listing(strays), "not in the index")
    held = {ref.name: ref.file for ref in _all_tensors(found)}
    copies = sum(len(tensors) for tensors in found.shards.values()) - len(held)
    if copies:
        yield Finding("*.safetensors", f"tensors that are there twice: {copies}")
    wrong = [
        name for name, file in weight_map.items() if file in found.shards and held.get(name) != file
    ]
    if wrong:
        yield Finding(
            listing(wrong, 1), f"tensors that are not where the index puts them: {len(wrong)}"
        )
    if mtp.announced is not None and len(mtp.layers) > mtp.announced:
        yield Finding(
            f"{CONFIG_FILE}: num_nextn_predict_layers",
            f"announces {mtp.announced}, the weights hold {len(mtp.layers)}",
        )
