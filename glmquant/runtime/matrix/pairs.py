"""Which versions of vLLM and vllm-ascend are loaded with, and what each needs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from glmquant.errors import UsageError

_BUILD: Final = ("semantic-version==2.10.0", "setuptools==80.9.0", "setuptools-rust==1.12.0")
"""What vLLM's own build asks for (``pyproject.toml`` of 0.30.0: setuptools below 81)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two releases that belong together.

    Attributes:
        version: As people name it, and the table of ``verify``.
        vllm: Of vLLM.
        ascend: Of vllm-ascend.
        packages: What it has in other versions than the CPU engine, or the engine has not.
        has_wheel: vllm-ascend comes built: its own build wants a compiler of CANN.
    """

    version: str
    vllm: str
    ascend: str
    packages: tuple[str, ...]
    has_wheel: bool = False

    @property
    def requirements(self) -> tuple[str, ...]:
        """All that is installed for it, pinned."""
        own = (f"vllm=={self.vllm}", f"vllm-ascend=={self.ascend}")
        return tuple(sorted((*_BUILD, *self.packages, *own)))


def _transformers(version: str, hub: str) -> tuple[str, ...]:
    """One version of it: vllm-ascend names it, and it takes no newer tokenizers than these."""
    return (f"huggingface-hub=={hub}", "tokenizers==0.22.2", f"transformers=={version}")


_OLD: Final = (*_transformers("4.57.6", "0.36.0"), "diskcache==5.6.3", "gguf==0.19.0")

PAIRS: Final = (
    Pair("0.13", "0.13.0", "0.13.0", _OLD, has_wheel=True),
    Pair("0.18", "0.18.0", "0.18.0", _OLD),
    Pair("0.23", "0.23.0", "0.23.0.post1", (*_transformers("5.5.4", "1.33.0"), "gguf==0.19.0")),
    Pair("0.26", "0.26.0", "0.26.0rc1", _transformers("5.14.1", "1.33.0")),
    Pair("0.30", "0.30.0", "0.30.0rc2", _transformers("5.14.1", "1.33.0")),
)
"""The pairs, the oldest first; transformers as each release of vllm-ascend asks for it."""


def choose_pairs(text: str | None) -> tuple[Pair, ...]:
    """The pairs that are named, in their own order; all where none is.

    Args:
        text: Versions with commas between, ``0.23,0.30``, or None.

    Raises:
        UsageError: It names another version, or none.
    """
    if text is None:
        return PAIRS
    named = [word.strip() for word in text.split(",") if word.strip()]
    odd = [word for word in named if _pair_of(word, PAIRS) is None]
    if odd or not named:
        raise UsageError(
            "there are no loaders of that version",
            where="--versions",
            expected=", ".join(pair.version for pair in PAIRS),
            found=", ".join(odd) or "no version",
            hint="--versions 0.23,0.30",
        )
    chosen = {_pair_of(word, PAIRS) for word in named}
    return tuple(pair for pair in PAIRS if pair in chosen)


def _pair_of(word: str, pairs: Sequence[Pair]) -> Pair | None:
    """By the short version, or by that of either package."""
    return next((each for each in pairs if word in (each.version, each.vllm, each.ascend)), None)
