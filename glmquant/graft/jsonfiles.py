"""Description and config.json of a checkpoint with what a graft gives it."""

from __future__ import annotations

import re
from typing import Any, Final

from glmquant.description import embedded_config
from glmquant.glm4_moe import CONFIG_FILE, mtp_layers, optional_mtp_weights
from glmquant.graft.donor import Donor
from glmquant.graft.recipient import Embedding, Recipient
from glmquant.jsontext import dump_object, parse_object
from glmquant.schemes import Scheme

_COUNT_KEY: Final = "num_nextn_predict_layers"
_COUNT: Final = re.compile(r'("num_nextn_predict_layers"\s*:\s*)(?:\d+|null)')


def described(donor: Donor, recipient: Recipient) -> dict[str, Any]:
    """The description with every tensor of the MTP layers and every router bias as FLOAT.

    Entries of MTP tensors that are not there go: the engine would take a float layer for int8.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.

    Returns:
        Its keys and values in order, those that it has already where they were.
    """
    wanted = dict.fromkeys(donor.router_biases(), Scheme.FLOAT.value)
    wanted |= dict.fromkeys(donor.mtp_tensors(), Scheme.FLOAT.value)
    for layer in mtp_layers(donor.config, donor.mtp_count):
        for name in optional_mtp_weights(layer):
            wanted.setdefault(name, Scheme.FLOAT.value)
    kept = {
        key: wanted.pop(key, kind)
        for key, kind in recipient.description.items()
        if key in wanted or not donor.is_mtp(key)
    }
    keys = list(kept)
    tensors = [position for position, key in enumerate(keys) if "." in key]
    end = tensors[-1] + 1 if tensors else 0
    described: dict[str, Any] = {key: kept[key] for key in keys[:end]}
    described |= wanted
    return described | {key: kept[key] for key in keys[end:]}


def edited_config(
    donor: Donor, recipient: Recipient, description: dict[str, Any]
) -> tuple[bytes, tuple[str, ...]]:
    """config.json of the result, as few bytes of it changed as can be, and what changes.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.
        description: That of the result.

    Returns:
        The bytes, and each change for people.
    """
    before = recipient.config
    data = recipient.data(CONFIG_FILE) or b""
    fields = dict(before)
    changes = []
    if fields.get(_COUNT_KEY) != donor.mtp_count:
        told = json_text(before.get(_COUNT_KEY)) if _COUNT_KEY in before else "no such key"
        changes.append(f"{_COUNT_KEY}: {told} -> {donor.mtp_count}")
        fields[_COUNT_KEY] = donor.mtp_count
    if recipient.embedding is Embedding.PARTIAL:
        changes.append("quantization_config: left out")
        del fields["quantization_config"]
    elif recipient.embedding is Embedding.WHOLE:
        has_method = "quant_method" in before["quantization_config"]
        embedded = embedded_config(description) if has_method else description
        if embedded != before["quantization_config"]:
            changes.append("quantization_config: the whole description, as before")
            fields["quantization_config"] = embedded
    if fields == before:
        return data, ()
    source = parse_object(donor.checkpoint.config_data, CONFIG_FILE)
    if list(fields.items()) == list(source.items()):
        return donor.checkpoint.config_data, tuple(changes)
    edited = _COUNT.sub(rf"\g<1>{donor.mtp_count}", data.decode("utf-8-sig")).encode()
    if parse_object(edited, CONFIG_FILE) == fields:
        return edited, tuple(changes)
    return dump_object(fields), tuple(changes)


def json_text(value: Any) -> str:
    """A value of config.json for people."""
    return "null" if value is None else repr(value)
