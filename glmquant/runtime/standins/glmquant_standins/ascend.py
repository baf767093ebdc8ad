"""vllm-ascend's own quantization classes, registered with a vLLM that runs on the CPU.

Real are: the configuration class, how it reads the description and chooses schemes, the schemes
with their parameters, weight loaders and processing after loading, and the linears' ``apply``.
Replaced is what needs an NPU: float layers are vLLM's own, and the experts' dispatch over cards is
a sort on one.
"""

from types import SimpleNamespace

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm_ascend import utils
from vllm_ascend.ops import register_custom_ops
from vllm_ascend.ops.fused_moe import routed_experts
from vllm_ascend.ops.fused_moe.routed_experts import AscendUnquantizedFusedMoEMethod
from vllm_ascend.ops.linear import AscendUnquantizedLinearMethod
from vllm_ascend.quantization import method_adapters
from vllm_ascend.quantization.configs.modelslim_config import AscendModelSlimConfig
from vllm_ascend.quantization.method_adapters import AscendFusedMoEMethod
from vllm_ascend.quantization.methods.w8a8 import w8a8_dynamic

from glmquant_standins import restored

_KEPT = []


class ExpertsOnOneProcessor(AscendFusedMoEMethod):
    """The real scheme's two matrix products over tokens sorted by expert."""

    def apply(
        self, layer, x, topk_weights, topk_ids, shared_experts=None, shared_experts_input=None
    ):
        """``[tokens, hidden]``: the experts' outputs, weighted and summed in F32."""
        tokens, count = topk_ids.shape
        chosen = topk_ids.reshape(-1).long()
        order = torch.argsort(chosen, stable=True)
        rows = order // count
        job = SimpleNamespace(
            hidden_states=x[rows].clone(),
            dynamic_scale=None,
            layer=layer,
            activation=getattr(layer, "activation", "silu"),
            fusion=False,
            dynamic_eplb=False,
            group_list=torch.bincount(chosen, minlength=layer.w13_weight.shape[0]),
            group_list_type=1,
            swiglu_limit=0.0,
            swiglu_alpha=1.0,
            swiglu_beta=0.0,
        )
        hidden, scale = self.quant_method.apply_gmm1_act_quant(job)
        out = self.quant_method.apply_gmm2(job, hidden, scale)
        weights = topk_weights.reshape(-1)[order].float().unsqueeze(-1)
        total = torch.zeros(tokens, out.shape[-1], dtype=torch.float32)
        return total.index_add_(0, rows, out.float() * weights).to(x.dtype)


def register():
    """Make ``--quantization ascend`` known to vLLM, by the real classes."""
    settings = SimpleNamespace(
        eplb_config=SimpleNamespace(dynamic_eplb=False), enable_fused_mc2=0, weight_nz_mode=1
    )
    for module in (w8a8_dynamic, utils, routed_experts):
        module.get_ascend_config = lambda: settings
    w8a8_dynamic.get_mc2_group = SimpleNamespace  # no cards: the real code takes an AttributeError
    method_adapters.oproj_tp_enable = method_adapters.mlp_tp_enable = lambda: False
    library = torch.library.Library("vllm", "IMPL")
    library.impl("quantize", register_custom_ops._quantize_impl, "CPU")
    _KEPT.append(library)  # the registration ends with the object

    @register_quantization_config("ascend")
    class ModelSlimOnCpu(AscendModelSlimConfig):
        """The real configuration, with float layers that run on a CPU."""

        def __reduce__(self):
            """A class made in a function is not found by its name in another process."""
            return restored, (self.__dict__,)

        @classmethod
        def override_quantization_method(cls, hf_quant_cfg, user_quant, hf_config=None):
            """As with an NPU: a description inside config.json is enough."""
            is_ours = hf_quant_cfg is not None and not hf_quant_cfg.get("quant_method")
            return "ascend" if is_ours else None

        def get_quant_method(self, layer, prefix, *args, **kwargs):
            """The real choice; a name that the description lacks is said with its layer."""
            try:
                method = super().get_quant_method(layer, prefix, *args, **kwargs)
            except KeyError as error:
                raise KeyError(
                    f"quant_model_description.json has no entry {error} (layer {prefix})"
                ) from error
            if isinstance(method, AscendUnquantizedLinearMethod):
                return UnquantizedLinearMethod()
            if isinstance(method, AscendUnquantizedFusedMoEMethod):
                return UnquantizedFusedMoEMethod(layer.moe_config)
            if isinstance(method, AscendFusedMoEMethod):
                return ExpertsOnOneProcessor(method.quant_method, layer.moe_config)
            return method
