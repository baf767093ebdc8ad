"""The manifest of our own outputs, with what a graft has added: it goes on telling the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import xxhash

from glmquant.errors import JsonError, TargetError
from glmquant.graft.donor import Donor
from glmquant.graft.plan import GraftPlan
from glmquant.graft.recipient import Recipient
from glmquant.graft.request import command
from glmquant.manifest import MANIFEST_FILE, TensorRecord, encode_manifest, record_from_json
from glmquant.markings import Format
from glmquant.resume import digest_of_digests


def grafted_manifest(
    donor: Donor, recipient: Recipient, plan: GraftPlan, added: Iterable[TensorRecord]
) -> bytes | None:
    """The manifest of the result; ``w8a8 --add-mtp`` gives the same records.

    The plan's digest is another, so that ``w8a8`` does not take the folder for its own output.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.
        plan: What was done.
        added: The grafted tensors.

    Returns:
        Its bytes; None for the checkpoints of others, which have none.

    Raises:
        TargetError: The manifest that is there cannot be understood.
    """
    if recipient.identity.marking.format is not Format.GLMQUANT or recipient.manifest is None:
        return None
    fields = dict(recipient.manifest)
    dropped = {name for names in plan.verdict.dropped.values() for name in names}
    try:
        records = {
            name: record_from_json(name, entry)
            for name, entry in fields.pop("tensors").items()
            if name not in dropped
        }
        records |= {record.name: record for record in added}
        fields.pop("format")
        fields["plan"] = _plan_digest(str(fields["plan"]), plan)
        fields["settings"] = {**fields["settings"], "add_mtp": True}
        fields["mtp_layers"] = donor.mtp_count
        shards = {**fields["source"]["shards"], **_source_shards(donor, records.values())}
        fields["source"] = {**fields["source"], "shards": dict(sorted(shards.items()))}
        fields["files"] = _files(fields["files"], plan)
    except (AttributeError, JsonError, KeyError, TypeError, ValueError) as error:
        raise TargetError(
            "the manifest of the checkpoint cannot be understood",
            where=str(recipient.path / MANIFEST_FILE),
            expected="what glmquant wrote there",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            hint=command("w8a8", donor.source.path, recipient.path, "--add-mtp", "--overwrite"),
        ) from error
    return encode_manifest(fields, records.values())


def _plan_digest(before: str, plan: GraftPlan) -> str:
    digest = xxhash.xxh3_128(json.dumps(["add-mtp", before, sorted(plan.removed)]).encode())
    for shard in plan.shards:
        digest.update(shard.file.encode() + shard.header)
    return digest.hexdigest()


def _source_shards(donor: Donor, records: Iterable[TensorRecord]) -> dict[str, Any]:
    """Length and digest of each shard of the source of which every tensor was read."""
    read = {record.source: record.source_xxh3 for record in records}
    return {
        file: {
            "nbytes": donor.checkpoint.stamps[file].nbytes,
            "xxh3_128": digest_of_digests(read[ref.name] for ref in refs),
        }
        for file, refs in donor.checkpoint.shards.items()
        if refs and all(ref.name in read for ref in refs)
    }


def _files(before: list[str], plan: GraftPlan) -> list[str]:
    """The list of files with the new shards behind the last of the old ones."""
    files = [name for name in before if name not in plan.removed]
    new = [shard.file for shard in plan.shards if shard.file not in files]
    new += [name for name in plan.verdict.adopted if name not in files]
    weights = [place for place, name in enumerate(files) if name.endswith(".safetensors")]
    end = weights[-1] + 1 if weights else 0
    return [*files[:end], *new, *files[end:]]
