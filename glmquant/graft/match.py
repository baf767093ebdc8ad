"""Whether a quantized checkpoint was made of this source: by config, names, shapes and values.

GLM-4.5, 4.6 and 4.7 have the same shapes, so values decide: those that no smoothing touches are
the last norm, the norms of q and k, the embedding and the head. Smoothing divides a layer's norm
and multiplies the router behind it by the same factors; their product is then compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from glmquant.errors import MismatchError, RotatedError
from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig, Role
from glmquant.graft.donor import Donor
from glmquant.graft.recipient import Recipient
from glmquant.graft.request import command
from glmquant.graft.values import Floats, is_float, rows_of
from glmquant.reconcile import listing
from glmquant.tensor_names import contradicted_key, is_mtp_part, layer_of
from glmquant.tensors import TensorRef

_FREE_KEYS: Final = ("num_nextn_predict_layers", "torch_dtype", "dtype")
_SMOOTHED_TOLERANCE: Final = 2.0**-6
"""Two BF16 factors, each rounded once more than in the source: 2^-8 each, and some room."""

_ROTATED_TOLERANCE: Final = 0.02
_WHOLE_SHAPE_KINDS: Final = ("FLOAT", "W8")
"""Types whose weight has the float weight's shape; W4 packs two values."""


def require_same_model(donor: Donor, recipient: Recipient) -> tuple[str, ...]:
    """Hold config, names, shapes and the values that have to be equal against each other.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.

    Returns:
        Notes.

    Raises:
        MismatchError: Another model, another release, or a body that lacks tensors.
        RotatedError: The embedding is rotated, though nothing says so.
        StorageError: One of them cannot be read.
    """
    _require_same_config(donor, recipient)
    _require_same_body(donor, recipient)
    try:
        return tuple(_require_same_values(donor, recipient))
    finally:
        for shards, source in (
            (donor.checkpoint.shards, donor.source),
            (recipient.loaded, recipient.source),
        ):
            for file in shards:
                source.release(file)


def _require_same_config(donor: Donor, recipient: Recipient) -> None:
    for key, field in Glm4MoeConfig.model_fields.items():
        wanted = getattr(donor.config, key)
        default = None if field.is_required() else field.default
        found = recipient.config.get(key, default)
        if key not in _FREE_KEYS and found != wanted:
            raise _mismatch(f"{CONFIG_FILE}: {key}", f"{wanted}, as in the source", repr(found))


def _require_same_body(donor: Donor, recipient: Recipient) -> None:
    """Every body tensor of the source is there, in whatever type, and no layer or expert more."""
    held = recipient.tensors()
    expected = donor.checkpoint.expected
    missing = []
    for name, tensor in expected.items():
        if tensor.role in (Role.MTP, Role.ROUTER_BIAS):
            continue
        ref = held.get(name)
        if ref is None:
            if f"{name.removesuffix('bias')}quant_bias" not in held:
                missing.append(name)
            continue
        kind = recipient.description.get(name, "FLOAT")
        has_shape = isinstance(kind, str) and kind.startswith(_WHOLE_SHAPE_KINDS)
        if has_shape and ref.shape != tensor.shape:
            raise _mismatch(
                f"{ref.file}: {name}",
                f"{list(tensor.shape)}, as in the source",
                str(list(ref.shape)),
            )
    for name, ref in held.items():
        layer, linear = layer_of(name), name.rpartition(".")[0]
        is_body = layer is not None and layer < donor.first_mtp_layer and not is_mtp_part(name)
        if is_body and f"{linear}.weight" not in expected and name not in expected:
            key = contradicted_key(donor.config, f"{linear}.weight")
            if key is not None:
                raise _mismatch(f"{ref.file}: {name}", f"no such tensor: {key}", f"{ref.dtype}")
    if missing:
        raise MismatchError(
            f"{len(missing)} tensors of the body are missing in the checkpoint",
            where=listing(missing),
            expected="every tensor of the source outside its MTP layer, quantized or not",
            found=f"{len(held)} tensors in {len(recipient.loaded)} files",
            hint="fetch the missing shards: router biases and the MTP layer are all that is added",
        )


@dataclass(frozen=True, slots=True)
class _Difference:
    ref: TensorRef
    row: int
    found: Floats
    wanted: Floats

    def error(self, differing: int, compared: int) -> MismatchError:
        unequal = np.flatnonzero(self.found != self.wanted)
        first = int(unequal[0]) if len(unequal) else 0
        return _mismatch(
            f"{self.ref.file}: {self.ref.name}, row {self.row}, column {first}",
            f"{self.wanted[first]:.6g}, as in the source",
            f"{self.found[first]:.6g}; {differing} of {compared} compared tensors differ",
        )


def _require_same_values(donor: Donor, recipient: Recipient) -> Iterator[str]:
    held = recipient.tensors()
    differences: list[_Difference] = []
    compared = 0
    for name in _constant_names(donor):
        if name not in held or name not in donor.tensors or not is_float(held[name]):
            continue
        compared += 1
        rows = [
            _Difference(held[name], row, found, wanted)
            for (row, found), (_, wanted) in zip(
                rows_of(recipient.read, held[name]),
                rows_of(donor.read, donor.tensors[name]),
                strict=True,
            )
        ]
        unequal = [each for each in rows if not np.array_equal(each.found, each.wanted)]
        if name == "model.embed_tokens.weight":
            _refuse_rotated_rows(rows, command("w8a8", donor.source.path, "--add-mtp"))
        differences += unequal[:1]
    smoothed = 0
    for layer in range(donor.first_mtp_layer):
        pair = _smoothing(donor, recipient, held, f"model.layers.{layer}")
        if pair is None:
            continue
        compared += 1
        smoothed += pair is True
        if isinstance(pair, _Difference):
            differences.append(pair)
    if differences:
        raise differences[0].error(len(differences), compared)
    if smoothed:
        yield f"layers whose post_attention_layernorm and router are smoothed alike: {smoothed}"


def _constant_names(donor: Donor) -> Iterator[str]:
    """Float tensors of the body that no smoothing changes."""
    for name, tensor in donor.checkpoint.expected.items():
        is_head = tensor.role in (Role.EMBEDDING, Role.LM_HEAD)
        is_norm = tensor.role is Role.NORM and "layernorm" not in name
        if is_head or is_norm:
            yield name


def _refuse_rotated_rows(rows: list[_Difference], anew: str) -> None:
    """A rotation keeps the length of each row of the embedding and turns it elsewhere."""
    lengths = [
        (float(np.linalg.norm(each.found)), float(np.linalg.norm(each.wanted))) for each in rows
    ]
    is_kept = all(
        wanted and abs(found / wanted - 1) < _ROTATED_TOLERANCE for found, wanted in lengths
    )
    cosines = [
        float(each.found @ each.wanted) / (found * wanted)
        for each, (found, wanted) in zip(rows, lengths, strict=True)
        if found * wanted
    ]
    if is_kept and cosines and max(cosines) < 0.9:
        raise RotatedError(
            "the body of the checkpoint seems rotated: the source's MTP layer does not fit it",
            where=f"{rows[0].ref.file}: {rows[0].ref.name}",
            expected="the rows of the source's embedding",
            found="rows of the same lengths in other directions",
            hint=f"take a checkpoint made without rotation (QuaRot), or make one: {anew}",
        )


def _smoothing(
    donor: Donor, recipient: Recipient, held: dict[str, TensorRef], at: str
) -> _Difference | bool | None:
    """Whether norm and router of a MoE layer were smoothed alike: None where they are no floats."""
    norm, router = f"{at}.post_attention_layernorm.weight", f"{at}.mlp.gate.weight"
    if not {norm, router} <= donor.tensors.keys() or not all(
        name in held and is_float(held[name]) for name in (norm, router)
    ):
        return None
    ((_, found_norm),) = rows_of(recipient.read, held[norm])
    ((_, wanted_norm),) = rows_of(donor.read, donor.tensors[norm])
    is_plain = np.array_equal(found_norm, wanted_norm)
    for (row, found), (_, wanted) in zip(
        rows_of(recipient.read, held[router]),
        rows_of(donor.read, donor.tensors[router]),
        strict=True,
    ):
        if is_plain:
            is_alike = np.array_equal(found, wanted)
        else:
            product, source = found * found_norm, wanted * wanted_norm
            limit = _SMOOTHED_TOLERANCE * np.abs(source) + 1e-12
            is_alike = bool(np.all(np.abs(product - source) <= limit))
        if not is_alike:
            if not is_plain:
                return _Difference(held[norm], 0, found_norm, wanted_norm)
            return _Difference(held[router], row, found, wanted)
    return not is_plain


def _mismatch(where: str, expected: str, found: str, hint: str | None = None) -> MismatchError:
    """The error for a source that is not what the checkpoint was made of."""
    return MismatchError(
        "the checkpoint and the source are not of the same model",
        where=where,
        expected=expected,
        found=found,
        hint=hint
        or "name the release that the checkpoint was made of: 4.5, 4.6 and 4.7 look the same",
    )
