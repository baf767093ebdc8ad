"""The BF16 source: what it can give, and where those bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmquant.checkpoint import Checkpoint, open_checkpoint
from glmquant.errors import NoMtpError
from glmquant.glm4_moe import Glm4MoeConfig, Role
from glmquant.source import FolderSource
from glmquant.tensor_names import is_mtp_part, layer_of
from glmquant.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Donor:
    """A BF16 checkpoint with an MTP layer.

    Attributes:
        checkpoint: The source, held against itself.
        tensors: Every tensor of it by name.
    """

    checkpoint: Checkpoint
    tensors: dict[str, TensorRef]

    @property
    def source(self) -> FolderSource:
        """Where its bytes are."""
        return self.checkpoint.source

    @property
    def name(self) -> str:
        """For people."""
        return self.checkpoint.name

    @property
    def config(self) -> Glm4MoeConfig:
        """The keys of config.json that decide names and shapes."""
        return self.checkpoint.config

    @property
    def mtp_count(self) -> int:
        """MTP layers that it has: by its tensors, whatever config.json says."""
        return self.checkpoint.mtp_count

    @property
    def first_mtp_layer(self) -> int:
        """The layer after the last."""
        return self.config.num_hidden_layers

    def mtp_tensors(self) -> Iterator[str]:
        """The tensors of its MTP layers, in the order of the model."""
        for name, tensor in self.checkpoint.expected.items():
            if tensor.role is Role.MTP:
                yield name

    def router_biases(self) -> Iterator[str]:
        """The router biases outside the MTP layers, in the order of the model."""
        for name, tensor in self.checkpoint.expected.items():
            if tensor.role is Role.ROUTER_BIAS:
                yield name

    def is_mtp(self, name: str) -> bool:
        """Whether a tensor is part of an MTP layer, at whatever index it lies."""
        layer = layer_of(name)
        return layer is not None and (layer >= self.first_mtp_layer or is_mtp_part(name))

    def read(self, ref: TensorRef, begin: int, nbytes: int) -> bytes:
        """A range of a tensor's bytes.

        Raises:
            StorageError: It cannot be read.
        """
        return self.source.read(ref.file, ref.offset + begin, nbytes)


def open_donor(path: Path) -> Donor:
    """Read and check the headers, the index and config.json of a source.

    Args:
        path: Its folder; a part of the model that has the MTP layer will do.

    Returns:
        The donor.

    Raises:
        CheckpointError: The folder is no BF16 GLM-4.x that holds together.
        NoMtpError: It has no MTP layer.
        UsageError: There is no such folder.
    """
    checkpoint = open_checkpoint(FolderSource(path), takes_part=True)
    if not checkpoint.mtp_count:
        layer = checkpoint.config.num_hidden_layers
        raise NoMtpError(
            "the source has no MTP layer to graft",
            where=str(path),
            expected=f"tensors model.layers.{layer}.*",
            found=f"none in {len(checkpoint.shards)} shards",
            hint="name the BF16 release with its MTP layer, mtp.safetensors for instance",
        )
    tensors = {ref.name: ref for refs in checkpoint.shards.values() for ref in refs}
    return Donor(checkpoint, tensors)
