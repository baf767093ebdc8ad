"""One load, as the engine does it: arguments, configuration, target, draft.

``get_model`` is vLLM's own, for both; vllm-ascend's worker calls it in the same way
(``worker/model_runner_v1.py`` and ``spec_decode``, 0.13 to 0.30). Replaced is what needs a device
or other processes of an engine: the groups of ranks run over gloo, tensors are on the CPU.
"""

import importlib
import os
import sys
import traceback
from contextlib import suppress

import torch
from watching import Marking, Watch

_KEPT = []


def import_engine():
    """Import all that a load needs, once: what is forked from here need not again."""
    import vllm.config  # noqa: F401
    from vllm.platforms import current_platform

    if current_platform.device_name != "npu":
        raise SystemExit(f"vLLM runs on {current_platform}, and not as on an NPU")
    from vllm_ascend import utils

    utils.adapt_patch(is_global_patch=True)
    utils.adapt_patch()
    import vllm.engine.arg_utils  # noqa: F401
    import vllm.model_executor.models.registry as registry
    import vllm_ascend.patch.worker.patch_distributed as distributed

    registry._run_in_subprocess = lambda function: function()  # it imports a model class
    distributed.create_hccl_pg_options = lambda *args, **kwargs: None
    for name in ("methods.w8a8.w8a8_dynamic", "methods.w8a8_dynamic", "w8a8_dynamic"):
        with suppress(ModuleNotFoundError):
            module = importlib.import_module(f"vllm_ascend.quantization.{name}")
            module.get_mc2_group = object  # a group without a device: they take AttributeError
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm_ascend.ops.fused_moe."):
            _leave_out_dispatch(module)


def _leave_out_dispatch(module):
    """How tokens travel between cards, and a look at the shared experts on the device."""
    if hasattr(module, "setup_moe_comm_method"):
        module.setup_moe_comm_method = lambda *args, **kwargs: None
    check = "_validate_shared_expert_consistency"
    for each in list(vars(module).values()):
        if isinstance(each, type) and check in vars(each):
            setattr(each, check, lambda self: None)


def load(case, rank, meeting):
    """What becomes of target and draft: ``{"target": {...}, "draft": ..., "unmet": ...}``.

    ``draft`` is None where none is asked for. ``unmet`` is why the ranks do not meet, which says
    nothing of the checkpoint; else None.

    Args:
        case: Folder, quantization, and how many ranks; of the speculative configuration whether
            there is one, and whether it names the model.
        rank: Which of the ranks this is.
        meeting: A file that does not exist yet, over which the ranks find each other.
    """
    found = {"target": None, "draft": None, "unmet": None}
    with Seeing(found, "target"):
        config = _configuration(case)
    if found["target"]:
        return found
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(config):
        with Seeing(found, "target"):
            try:
                _groups(config, case["ranks"], rank, meeting)
            except (OSError, RuntimeError) as error:  # torch's of groups are RuntimeErrors
                found["unmet"] = f"{type(error).__name__}: {str(error)[:4000]}"
        if found["unmet"]:
            return found
        if not found["target"]:
            _model(found, "target", config, None)
        if case["draft"] and found["target"]["fate"] == "loads":
            _model(found, "draft", config, config.speculative_config.draft_model_config)
    return found


def _configuration(case):
    from vllm.engine.arg_utils import EngineArgs

    speculative = None
    if case["draft"]:
        speculative = {"method": "mtp", "num_speculative_tokens": 1}
        if case["names_model"]:
            speculative["model"] = case["folder"]
    arguments = EngineArgs(
        model=case["folder"],
        tokenizer=case["folder"],
        skip_tokenizer_init=True,
        quantization=case["quantization"],
        speculative_config=speculative,
        tensor_parallel_size=case["ranks"],
        enable_expert_parallel=case["expert_parallel"],
        distributed_executor_backend="mp" if case["ranks"] > 1 else None,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=2,
        max_num_batched_tokens=256,
    )
    config = arguments.create_engine_config()
    config.device_config.device = torch.device("cpu")
    return config


def _groups(config, ranks, rank, meeting):
    import vllm.distributed.parallel_state as state
    from vllm_ascend.utils import register_ascend_customop

    state._node_count = lambda group: 1
    state.in_the_same_node_as = lambda *args, **kwargs: [True] * ranks
    torch._C._get_accelerator = lambda *args: torch.device("cpu")
    config.parallel_config.rank = rank
    state.init_distributed_environment(ranks, rank, f"file://{meeting}", rank, backend="gloo")
    state.initialize_model_parallel(ranks, 1)
    from vllm_ascend.distributed.parallel_state import init_ascend_model_parallel

    init_ascend_model_parallel(config.parallel_config)
    register_ascend_customop(config)


def _model(found, which, config, model_config):
    from vllm.model_executor.model_loader import base_loader, get_model
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    seen = {}
    plain_make, plain_load = base_loader.initialize_model, DefaultModelLoader.load_weights

    def make(*args, **kwargs):
        with Marking():
            return plain_make(*args, **kwargs)

    def load_weights(self, model, *args, **kwargs):
        seen["sizes"] = {name: each.numel() for name, each in model.named_parameters()}
        seen["parameters"] = len(seen["sizes"])
        watch = Watch(model)
        given = plain_load(self, model, *args, **kwargs)
        seen["unfilled"] = watch.unfilled(model)
        return given

    base_loader.initialize_model, DefaultModelLoader.load_weights = make, load_weights
    more = {} if model_config is None else {"model_config": model_config}
    try:
        with Seeing(found, which):
            _KEPT.append(get_model(vllm_config=config, **more))
    finally:
        base_loader.initialize_model, DefaultModelLoader.load_weights = plain_make, plain_load
    if found[which] is None:
        found[which] = {"fate": "loads", **seen}


class Seeing:
    """Takes down an exception of the engine as what became of a model."""

    def __init__(self, found, which):
        self._found, self._which = found, which

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or not isinstance(error, Exception):
            return False
        if os.environ.get("GLMQUANT_MATRIX_TRACE"):
            traceback.print_exception(kind, error, trace, file=sys.stderr)
        last = traceback.extract_tb(trace)[-1]
        place = "/".join(last.filename.split("site-packages/")[-1].split("/")[-6:])
        self._found[self._which] = {
            "fate": "fails",
            "error": kind.__name__,
            "message": str(error)[:4000],
            "place": f"{place}:{last.lineno} {last.name}",
        }
        return True
