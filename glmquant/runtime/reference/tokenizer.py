"""A checkpoint's own tokenizer and chat template, by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from glmquant.errors import CheckpointError, EngineError


class Tokenizer:
    """Turns text into token ids.

    Args:
        folder: The checkpoint.

    Raises:
        CheckpointError: It has no tokenizer that can be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # Any: what transformers types of its tokenizers is narrower than what they take.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise CheckpointError(
                "the tokenizer cannot be read",
                where=str(folder),
                expected="tokenizer.json and tokenizer_config.json of the release",
                found=str(error).partition("\n")[0][:300],
                hint="copy both from the BF16 weights",
            ) from error

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; special tokens written in it are taken as such, none are added."""
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the model has to answer.

        Raises:
            EngineError: The chat template does not take it.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise EngineError(
                "the chat template does not take a conversation",
                where=json.dumps(messages)[:200],
                found=str(error)[:300],
            ) from error
        return self.encode(text)
