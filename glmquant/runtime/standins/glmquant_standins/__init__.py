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
