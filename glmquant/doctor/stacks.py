"""Which versions go together, release by release of vllm-ascend.

The requirements are those that the releases themselves declare (``Requires-Dist`` in the METADATA
of the wheels 0.13.0, 0.18.0, 0.23.0, 0.26.0rc1 and of 0.30.0rc2 built from its sdist); Python and
CANN stand in vllm-ascend's ``versioning_policy.md`` (182b75e), which ends with 0.23.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_POLICY: Final = "vllm-ascend versioning_policy.md (182b75e)"


@dataclass(frozen=True, slots=True)
class Stack:
    """One release of vllm-ascend, and what it is to be installed with.

    Attributes:
        version: Of vllm-ascend.
        vllm: The release of vLLM that it plugs into.
        requires: Distribution → the versions that it takes.
        source: Where these stand.
        python: The versions of Python that it takes; empty where that is not known.
        cann: The CANN that it is released for; empty where that is not known.
    """

    version: str
    vllm: str
    requires: dict[str, str]
    source: str
    python: str = ""
    cann: str = ""


def _stack(
    version: str,
    vllm: str,
    torch: str,
    triton: str,
    transformers: str,
    *,
    numpy: str = "",
    python: str = "",
    cann: str = "",
    source: str = "",
) -> Stack:
    requires = {
        "torch": f"=={torch}",
        "torch-npu": f"=={torch}",
        "triton-ascend": f"=={triton}",
        "transformers": transformers,
    }
    requires |= {"numpy": numpy} if numpy else {}
    return Stack(version, vllm, requires, source or f"vllm-ascend {version} METADATA", python, cann)


STACKS: Final = {
    stack.version: stack
    for stack in (
        _stack("0.13.0", "0.13.0", "2.8.0", "3.2.0", ">=4.57.4,<5", numpy="<2",
               python=">=3.10,<3.12", cann="8.5.0"),
        _stack("0.18.0", "0.18.0", "2.9.0", "3.2.0", ">=4.57.4", numpy="<2",
               python=">=3.10,<3.12", cann="8.5.1"),
        _stack("0.23.0", "0.23.0", "2.10.0", "3.2.2", "==5.5.4",
               python=">=3.10,<3.13", cann="9.1.0"),
        _stack("0.23.0.post1", "0.23.0", "2.10.0", "3.2.2", "==5.5.4",
               python=">=3.10,<3.13", cann="9.1.0",
               source="vllm-ascend 0.23.0 METADATA, taken for its post-release, too"),
        _stack("0.26.0rc1", "0.26.0", "2.10.0", "3.2.2", "==5.14.1"),
        _stack("0.30.0rc2", "0.30.0", "2.10.0", "3.2.2", "==5.14.1"),
    )
}  # fmt: skip
"""The releases that ``verify`` predicts for, and the post-release of one."""

NAMING_SOURCE: Final = f"{_POLICY}: a release is named for the vLLM that it matches"
TORCH_NPU_SOURCE: Final = f"{_POLICY}: PyTorch and torch_npu of one number in every row"
TRITON_SOURCE: Final = (
    "vllm-ascend pull request 7790: both distributions own the folder triton, and the last that "
    "was installed or removed decides what is left of it"
)
CANN_SOURCE: Final = (
    "measured: without CANN's libraries torch fails to import once torch-npu is there"
)
MSMODELSLIM_SOURCE: Final = (
    "measured with msmodelslim 26.1.0: its GLM outputs lack the router biases of every MoE layer"
)
