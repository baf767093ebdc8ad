"""What vllm-ascend imports and a CPU has not: empty modules, and one operator.

An operator that is called all the same raises by its name, so that no load can be right by a
stand-in that nobody noticed. ``npu_format_cast`` gives its values back: the NPU's formats are
memory layouts.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

import torch

_HOLLOW = ("acl", "fla_npu", "mooncake", "torch_npu", "torchair")
"""Packages whose every name and module is there, and hollow."""

_PICTURES = ("torchvision",)
"""Classes for pictures name it; transformers shall go on to know that it is not there."""


def put_in_place():
    """Make ``torch_npu`` and its like importable; before vLLM is."""
    from transformers.utils import is_torchvision_available, is_torchvision_v2_available

    is_torchvision_available()  # both keep their answer
    is_torchvision_v2_available()
    sys.meta_path.append(_Finder())
    sys.modules["triton.runtime"] = MagicMock()
    import torch_npu

    for name in ("torchair.fx_summary", "torchair.npu_fx_compiler"):
        importlib.import_module(name)  # vllm-ascend 0.18 and 0.23 load them anew

    torch_npu.npu_format_cast = lambda tensor, *args, **kwargs: tensor
    torch_npu.__version__ = "0+cpu"
    torch_npu.npu = MagicMock()
    torch.utils.rename_privateuse1_backend("npu")
    torch.npu = MagicMock()
    sys.modules["torch.npu"] = torch.npu
    for name in ("Event", "NPUGraph", "Stream"):
        setattr(torch.npu, name, MagicMock)
    for npu in (torch.npu, torch_npu.npu):
        npu.is_available.return_value = True
        npu.device_count.return_value = 2
        npu.current_device.return_value = 0
        npu.mem_get_info.return_value = (60 << 30, 64 << 30)
    torch.version.cann = None
    torch.distributed.is_hccl_available = lambda: True
    torch.Tensor.npu = lambda self, *args, **kwargs: self


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the hollow packages."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (*_HOLLOW, *_PICTURES):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Hollow(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


class _Hollow(types.ModuleType):
    """A module that has every name: classes for capitalised ones, else what raises when called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = MagicMock(name=f"{self.__name__}.{name}")
        if self.__name__ == "torch_npu" and name.startswith("npu_"):
            made.side_effect = NotImplementedError(f"{self.__name__}.{name} has no stand-in here")
        setattr(self, name, made)
        return made
