"""The tensors of a checkpoint, read one linear at a time and held to what is expected of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from glmquant.errors import ConfigError, TensorSetError
from glmquant.index import natural_key
from glmquant.observer import Observer
from glmquant.runtime.reference.linears import (
    DynamicLinear,
    FloatLinear,
    Linear,
    StaticLinear,
    int_mm_is_exact,
)
from glmquant.runtime.reference.settings import Precision
from glmquant.source import FileStamp, FolderSource, source_changed, was_rewritten
from glmquant.survey import Survey, printable
from glmquant.tensor_names import layer_of
from glmquant.tensors import TensorRef

_TORCH_DTYPES: Final = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
_FLOATS: Final = ("BF16", "F16", "F32")
_INTEGERS: Final = (*_FLOATS, "I8", "I32", "I64")
_KINDS: Final = ("FLOAT", "W8A8", "W8A8_DYNAMIC")


class Weights:
    """What an engine would load of a folder.

    Reading goes through ordinary reads into memory of its own, so that what is held is what is
    seen in the process's resident memory.

    Args:
        source: The folder.
        found: What was read of it.
        precision: In what the model calculates.
    """

    def __init__(self, source: FolderSource, found: Survey, precision: Precision) -> None:
        _give_memory_back()
        shards = found.engine_shards
        files = sorted(shards, key=natural_key)
        self._source = source
        self._tensors = {ref.name: ref for file in files for ref in shards[file]}
        self._broken = found.broken
        description = found.description or found.embedded_description
        self._types: dict[str, Any] = description[1] if description else {}
        self._layers = self._layer_sums()
        self._has_int_mm = int_mm_is_exact()
        self._stamps = {file: source.stamp(file) for file in files}
        self._observer = Observer()
        self._ahead = 0
        self.dtype = torch.bfloat16 if precision is Precision.BFLOAT16 else torch.float32

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._source.path

    @property
    def stamps(self) -> dict[str, FileStamp]:
        """File → its length and times when the folder was opened."""
        return self._stamps

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def layer_nbytes(self, layer: int) -> int:
        """Bytes of a layer's tensors."""
        return self._layers.get(layer, 0)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor, 0 where there is none."""
        return self._tensors[name].nbytes if name in self._tensors else 0

    def report_to(self, observer: Observer) -> None:
        """Tell another observer what is read from now on."""
        self._observer = observer

    def begin(self, nbytes: int) -> None:
        """So many bytes are to be read until ``settle``."""
        self._ahead = nbytes

    def settle(self) -> None:
        """Tell the observer of the bytes that did not have to be read."""
        self._observer.advance(self._ahead)
        self._ahead = 0

    def require_unchanged(self) -> None:
        """The files are those that were opened.

        Raises:
            SourceChangedError: One was written to meanwhile.
        """
        for file, stamp in self._stamps.items():
            now = self._source.stamp(file)
            if was_rewritten(stamp, now):
                raise source_changed(file, stamp, now)

    def close(self) -> None:
        """Close the files; they are opened again when something is read."""
        for file in self._stamps:
            self._source.release(file)

    def require(self, name: str, shape: tuple[int, ...], dtypes: Sequence[str]) -> TensorRef:
        """A tensor that is there and as expected.

        Args:
            name: Its full name.
            shape: What it has to have.
            dtypes: What it may have, as in safetensors.

        Raises:
            TensorSetError: It is not.
        """
        ref = self._tensors.get(name)
        if ref is None:
            hint = "the checkpoint is damaged: convert or fetch it again"
            if self._broken:
                hint = f"{printable(self._broken[0])} cannot be read: fetch it again"
            raise TensorSetError(
                "the model cannot run: a tensor is missing",
                where=f"{self.folder}: {name}",
                expected=f"{' or '.join(dtypes)} {list(shape)}",
                found="no such tensor in the files that an engine loads",
                hint=hint,
            )
        if ref.shape != shape or ref.dtype not in dtypes:
            raise TensorSetError(
                "the model cannot run: a tensor has another shape or dtype",
                where=f"{self.folder / ref.file}: {name}",
                expected=f"{' or '.join(dtypes)} {list(shape)}",
                found=f"{ref.dtype} {list(ref.shape)}",
                hint="config.json and weights have to be of one checkpoint",
            )
        return ref

    def read(self, name: str, shape: tuple[int, ...], dtypes: Sequence[str] = _FLOATS) -> Tensor:
        """A tensor in its own dtype.

        Raises:
            TensorSetError: It is missing, or has another shape or dtype.
            StorageError: It cannot be read.
        """
        ref = self.require(name, shape, dtypes)
        tensor = torch.empty(shape, dtype=_TORCH_DTYPES[ref.dtype])
        self._fill(tensor, ref, ref.offset)
        return tensor

    def read_rows(self, name: str, shape: tuple[int, int], rows: Tensor) -> Tensor:
        """Some rows of a float matrix, each read once, in the model's dtype.

        Args:
            name: Its full name.
            shape: That of the whole matrix.
            rows: ``[n]`` int64.

        Returns:
            ``[n, shape[1]]``.
        """
        ref = self.require(name, shape, _FLOATS)
        wanted, places = torch.unique(rows, return_inverse=True)
        table = torch.empty(len(wanted), shape[1], dtype=_TORCH_DTYPES[ref.dtype])
        row_nbytes = ref.nbytes // shape[0]
        for at, row in enumerate(wanted.tolist()):
            self._fill(table[at], ref, ref.offset + row * row_nbytes)
        return table.to(torch.bfloat16).to(self.dtype)[places]

    def _fill(self, tensor: Tensor, ref: TensorRef, offset: int) -> None:
        view = tensor.view(-1).view(torch.uint8).numpy().data
        self._source.read_into(ref.file, offset, view)
        told = min(len(view), self._ahead)
        self._ahead -= told
        self._observer.advance(told)

    def vector(self, name: str, length: int) -> Tensor:
        """``[length]`` of a norm, as the engine holds it: BF16, cast to the model's dtype."""
        return self.read(name, (length,)).to(torch.bfloat16).to(self.dtype)

    def linear(self, name: str, inputs: int, outputs: int, has_bias: bool = False) -> Linear:
        """A linear by what the description says of it; its scales as the engine holds them.

        Args:
            name: The module: ``model.layers.0.self_attn.q_proj``.
            inputs: Elements of its input.
            outputs: Elements of its output.
            has_bias: A float or dynamic one has a bias.

        Raises:
            TensorSetError: A tensor is missing, or has another shape or dtype.
            ConfigError: The description gives it a type that cannot be run.
        """
        shape = (outputs, inputs)
        kind = self._types.get(f"{name}.weight", "FLOAT")
        if kind not in _KINDS:
            raise ConfigError(
                "the reference model cannot run a linear of this type",
                where=f"{self.folder}: {name}.weight",
                expected=", ".join(_KINDS),
                found=repr(kind)[:80],
            )
        if kind == "W8A8":
            return self._static(name, shape)
        weight = self.read(f"{name}.weight", shape, _FLOATS if kind == "FLOAT" else ("I8",))
        bias = None
        if has_bias:
            bias = self.read(f"{name}.bias", (outputs,)).to(torch.bfloat16)
        if kind == "FLOAT":
            return FloatLinear(weight.to(torch.bfloat16), bias)
        scale = self._column(f"{name}.weight_scale", outputs)
        scale = scale.to(torch.bfloat16).float()
        return DynamicLinear(weight, scale, bias, self._has_int_mm)

    def _static(self, name: str, shape: tuple[int, int]) -> StaticLinear:
        outputs = shape[0]
        return StaticLinear(
            weight=self.read(f"{name}.weight", shape, ("I8",)),
            input_scale=self.read(f"{name}.input_scale", (1,)).to(torch.bfloat16),
            input_offset=self.read(f"{name}.input_offset", (1,), _INTEGERS).to(torch.int8).float(),
            quant_bias=self.read(f"{name}.quant_bias", (outputs,), ("I32",)),
            deq_scale=self.read(f"{name}.deq_scale", (outputs,), ("F32",)),
            has_int_mm=self._has_int_mm,
        )

    def _column(self, name: str, rows: int) -> Tensor:
        return self.read(name, (rows, 1)).flatten()

    def _layer_sums(self) -> dict[int, int]:
        sums: dict[int, int] = {}
        for name, ref in self._tensors.items():
            layer = layer_of(name)
            if layer is not None:
                sums[layer] = sums.get(layer, 0) + ref.nbytes
        return sums


def _give_memory_back() -> None:
    """Have large tensors go back to the system when they are dropped, with glibc.

    It would keep up to 32 MB each on its heap: 500 MB of holes beside a 2.3 GB checkpoint.
    """
    m_mmap_threshold = -3
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 20)
