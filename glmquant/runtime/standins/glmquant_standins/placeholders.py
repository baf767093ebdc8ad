"""Empty modules and names that vllm-ascend imports but that nothing here calls."""

import importlib.util
import sys
import types
from unittest.mock import MagicMock

import torch

_EMPTY = ("acl", "fla_npu", "fla_npu.ops", "torch_npu.op_plugin", "torch_npu.op_plugin.atb")
_HOLLOW = (
    "acl.rt",
    "fla_npu.ops.ascendc",
    "torch_npu._C",
    "torch_npu._C._distributed_c10d",
    "torch_npu._inductor",
    "torch_npu.op_plugin.atb._atb_ops",
    "torch_npu.profiler",
)


def fill(name, operators):
    """Make the module of that name what vllm-ascend takes for ``torch_npu``.

    An operator that has no stand-in is there, and raises by its name when it is called.
    """
    module = sys.modules[name]
    for key, value in vars(operators).items():
        if key.startswith("npu_"):
            setattr(module, key, value)
    # Named like the operators' own constants in torch_npu; compared with, never computed with.
    module.float4_e2m1fn_x2, module.hifloat8, module.float8_e8m0fnu = 296, 290, 293
    module.npu = MagicMock()
    module.__version__ = "0+cpu"
    module.__getattr__ = _missing_operator
    for empty in _EMPTY:
        _module(empty)
    for hollow in _HOLLOW:
        _module(hollow).__getattr__ = _hollow
    torch.npu = MagicMock()
    torch.npu.is_available = lambda: False
    torch.npu.device_count = lambda: 0
    torch.npu.current_device = lambda: "cpu"
    torch.npu.NPUGraph = torch.npu.Event = torch.npu.Stream = MagicMock
    sys.modules["torch.npu"] = torch.npu
    _module("vllm_ascend._build_info").__device_type__ = "A2"


def _module(name):
    module = types.ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules and parent != "vllm_ascend":
        setattr(sys.modules[parent], last, module)
    return module


def _missing_operator(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def call(*args, **kwargs):
        raise NotImplementedError(f"torch_npu.{name} has no stand-in on a CPU")

    return call


def _hollow(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
