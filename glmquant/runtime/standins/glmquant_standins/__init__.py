"""Lets the genuine vLLM run vllm-ascend's own quantization code on a CPU.

Found by vLLM in each of its processes as a plugin of the group ``vllm.general_plugins``.
"""

_DONE = []


def install():
    """Put the operators' stand-ins in place and register vllm-ascend's classes. Once a process."""
    if _DONE:
        return
    _DONE.append(True)
    import torch_npu  # noqa: F401 - the stand-in

    from glmquant_standins import ascend, drafting

    ascend.register()
    drafting.mend()


def restored(state):
    """The configuration that one process of vLLM has made, in another that it starts.

    ``vllm bench`` makes it before it starts its engine; the class is made by ``install``.
    """
    install()
    from vllm.model_executor.layers.quantization import get_quantization_config

    kind = get_quantization_config("ascend")
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made
