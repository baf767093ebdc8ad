"""The reference model: a checkpoint run by our own arithmetic, layer by layer from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from glmquant import __version__
from glmquant.errors import MismatchError, NoMtpError, UsageError
from glmquant.observer import Observer
from glmquant.runtime.observed import Answer, Divergence, Drafting, Prompt
from glmquant.runtime.reference import greedy
from glmquant.runtime.reference.drafts import count_accepted, draft
from glmquant.runtime.reference.model import Model
from glmquant.runtime.reference.saved import Log
from glmquant.runtime.reference.settings import ModelConfig, Precision, read_settings
from glmquant.runtime.reference.text import TextPass, diverge, predicting_rows, text_logprobs
from glmquant.runtime.reference.weights import Weights
from glmquant.source import FolderSource
from glmquant.survey import survey

DOING = "reference"


class Reference:
    """A BF16 or W8A8 checkpoint that can be run.

    Each pass reads every layer once and drops it: memory holds one linear, an expert's or a dense
    layer's, and what the sequences need. An interrupted run goes on when it is called again.

    Args:
        folder: The checkpoint: BF16, ours, or msModelSlim's.
        precision: In what it calculates.

    Raises:
        UsageError: There is no such folder.
        ArchitectureError: It is another model's.
        ConfigError: config.json lacks a key, or has a wrong value.
        StorageError: The folder cannot be read.
    """

    def __init__(self, folder: Path, precision: Precision = Precision.BFLOAT16) -> None:
        source = FolderSource(folder)
        found = survey(source)
        self.config: ModelConfig = read_settings(found.config)
        self.precision = precision
        self._weights = Weights(source, found, precision)
        self._model = Model(self._weights, self.config)

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self._weights.folder

    @property
    def has_mtp(self) -> bool:
        """There is an MTP layer."""
        return f"model.layers.{self._model.mtp_layer}.eh_proj.weight" in self._weights

    @torch.inference_mode()
    def continue_greedily(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        speculative_tokens: int = 0,
        observer: Observer | None = None,
    ) -> tuple[list[Answer], Drafting | None]:
        """Continue prompts with the likeliest tokens; end-of-text tokens end nothing.

        Args:
            prompts: What is continued, all of it together.
            max_tokens: How many tokens are chosen after each.
            speculative_tokens: How many the MTP layer drafts at once; 0 for no drafts.
            observer: Is told of the bytes of weights.

        Returns:
            An answer to each prompt, and what became of the drafts, None without.

        Raises:
            UsageError: No prompt, an empty one, a token that the model has not, or too many.
            NoMtpError: Drafts are asked of a checkpoint that has no MTP layer.
            TensorSetError: A tensor is missing, or has another shape or dtype.
            NonFiniteError: The logits are no numbers.
            SourceChangedError: The checkpoint was written to.
            StorageError: It cannot be read.
        """
        steps = max_tokens + max(speculative_tokens - 1, 0)
        self._require_tokens([prompt.tokens for prompt in prompts], 1, steps)
        if max_tokens < 1 or speculative_tokens < 0:
            raise UsageError(
                "a number of tokens makes no sense",
                where="max_tokens, speculative_tokens",
                expected="at least 1, and at least 0",
                found=f"{max_tokens}, {speculative_tokens}",
            )
        if speculative_tokens and not self.has_mtp:
            raise NoMtpError(
                "there is no MTP layer that could draft",
                where=f"{self.folder}: model.layers.{self._model.mtp_layer}.eh_proj.weight",
                expected="such a tensor",
                found="none in the files that an engine loads",
                hint="glmquant add-mtp adds the layer of the BF16 release",
            )
        tokens = tuple(prompt.tokens for prompt in prompts)
        log = self._log("greedy", [tokens, max_tokens, speculative_tokens])
        try:
            course = greedy.Course(tokens, self._model.empty_past(len(tokens)))
            greedy.recall(course, self._model, steps, log)
            passes = self._model.pass_nbytes
            total = steps * passes
            if speculative_tokens and max_tokens > 1:
                total += self._model.draft_nbytes(speculative_tokens)
            self._start(observer, course.steps * passes, total)
            while course.steps < steps:
                greedy.step(course, self._model, log)
            drafting = None
            if speculative_tokens:
                drafting = self._draft(course, max_tokens, speculative_tokens)
            self._weights.require_unchanged()
            log.remove()
        finally:
            self._end(log)
        answers = [
            Answer(tuple(chosen[:max_tokens]), tuple(gaps[:max_tokens]))
            for chosen, gaps in zip(course.chosen, course.gaps, strict=True)
        ]
        return answers, drafting

    def _draft(self, course: greedy.Course, max_tokens: int, count: int) -> Drafting:
        course.past.clear()
        if max_tokens == 1:
            return Drafting(0, 0, 0, (0,) * count)
        drafts = draft(
            self._model,
            greedy.sequences_of(course),
            list(map(len, course.prompts)),
            [torch.cat(parts) for parts in course.hidden],
            max_tokens,
            count,
        )
        return count_accepted(drafts, course.chosen, max_tokens)

    @torch.inference_mode()
    def prompt_logprobs(
        self, windows: Sequence[Sequence[int]], observer: Observer | None = None
    ) -> list[NDArray[np.float32]]:
        """What the model thinks of texts.

        Args:
            windows: Token ids of each, at least two.
            observer: Is told of the bytes of weights.

        Returns:
            Of each text ``[its tokens - 1]`` F32: the log-probability (natural) of the second token
            and on, each after those before it.

        Raises:
            UsageError: No text, one that is too short, or a token that the model has not.
            TensorSetError: A tensor is missing, or has another shape or dtype.
            NonFiniteError: The hidden states are no numbers.
            SourceChangedError: The checkpoint was written to.
            StorageError: It cannot be read.
        """
        self._require_tokens(windows, 2, 0)
        logs = self._text_logs(windows)
        try:
            text = TextPass(self._model, windows, logs)
            self._start(observer, text.done_nbytes, self._model.pass_nbytes)
            rows, tokens = predicting_rows(windows)
            hidden = text.run()[rows]
            found = text_logprobs(self._model.head(), hidden, tokens, self.config.vocab_size)
            self._weights.require_unchanged()
            text.forget()
        finally:
            self._end(*logs)
        parts = torch.split(found, [len(window) - 1 for window in windows])
        return [np.asarray(part.numpy(), np.float32) for part in parts]

    def _require_tokens(self, texts: Sequence[Sequence[int]], least: int, further: int) -> None:
        most = self.config.max_position_embeddings - further
        for at, text in enumerate(texts):
            if not least <= len(text) <= most:
                raise UsageError(
                    "a text is too short or too long for the model",
                    where=f"text {at}",
                    expected=f"{least} to {most} tokens",
                    found=f"{len(text)} tokens",
                )
            strange = [token for token in text if not 0 <= token < self.config.vocab_size]
            if strange:
                raise UsageError(
                    "a text has a token that the model does not have",
                    where=f"text {at}",
                    expected=f"ids from 0 to {self.config.vocab_size - 1}",
                    found=str(strange[0]),
                    hint="take the tokenizer of the same checkpoint",
                )
        if not texts:
            raise UsageError("there is no text to run", expected="one at least", found="none")

    def _text_logs(self, windows: Sequence[Sequence[int]]) -> tuple[Log, Log]:
        texts = [list(window) for window in windows]
        return self._log("text-a", texts), self._log("text-b", texts)

    def _log(self, kind: str, what: object) -> Log:
        """The log of a run of this folder: one of each kind and precision."""
        folder = str(self.folder.resolve())
        where = xxhash.xxh3_128(json.dumps([folder, self.precision]).encode()).hexdigest()
        state = [self._weights.stamps, __version__, torch.__version__, torch.get_num_threads()]
        return Log(f"reference-{kind}-{where}.bin", json.dumps([folder, state, what]).encode())

    def _start(self, observer: Observer | None, done_nbytes: int, total_nbytes: int) -> None:
        observer = observer or Observer()
        observer.start(DOING, done_nbytes, total_nbytes)
        self._weights.report_to(observer)

    def _end(self, *logs: Log) -> None:
        self._weights.report_to(Observer())
        self._weights.close()
        for log in logs:
            log.close()


@torch.inference_mode()
def divergence(
    base: Reference,
    other: Reference,
    windows: Sequence[Sequence[int]],
    observer: Observer | None = None,
) -> Divergence:
    """How another model's next-token distributions differ from a base's along texts.

    Args:
        base: The one that is right, as the BF16 checkpoint.
        other: The one to be judged.
        windows: Token ids of each text, at least two.
        observer: Is told of the bytes of weights of both.

    Returns:
        Figures of the second token of each text and on, one text after the other.

    Raises:
        MismatchError: Their vocabularies differ.
        UsageError: No text, one that is too short, or a token that the models have not.
        TensorSetError: A tensor is missing, or has another shape or dtype.
        NonFiniteError: The hidden states are no numbers.
        SourceChangedError: A checkpoint was written to.
        StorageError: One cannot be read.
    """
    vocabulary = base.config.vocab_size
    if other.config.vocab_size != vocabulary:
        raise MismatchError(
            "the models have different vocabularies",
            where=str(other.folder),
            expected=f"vocab_size {vocabulary}, as {base.folder}",
            found=f"vocab_size {other.config.vocab_size}",
        )
    both = (base, other)
    logs = []
    for each in both:
        each._require_tokens(windows, 2, 0)
        logs.append(each._text_logs(windows))
    try:
        passes = [TextPass(each._model, windows, own) for each, own in zip(both, logs, strict=True)]
        done = sum(each.done_nbytes for each in passes)
        total = sum(each._model.pass_nbytes for each in both)
        base._start(observer, done, total)
        other._weights.report_to(observer or Observer())
        rows, tokens = predicting_rows(windows)
        hidden = (passes[0].run()[rows], passes[1].run()[rows])
        heads = (base._model.head(), other._model.head())
        found = diverge(heads, hidden, tokens, vocabulary)
        for each, text in zip(both, passes, strict=True):
            each._weights.require_unchanged()
            text.forget()
    finally:
        for each, own in zip(both, logs, strict=True):
            each._end(*own)
    return found
