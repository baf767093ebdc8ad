"""Asks an OpenAI-compatible server of vLLM's for tokens, log-probabilities and counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from glmquant.errors import EngineError, GlmquantError
from glmquant.runtime.connection import Connection
from glmquant.runtime.observed import Answer, Counters, Drafting, Prompt
from glmquant.survey import printable

_UNLIKE: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What reading an answer raises that is not as vLLM's are."""

_PREFIX: Final = "vllm:spec_decode_num_"
"""Of the counters (vLLM 0.11 to 0.32, ``v1/spec_decode/metrics.py``)."""

_STARTED: Final = "process_start_time_seconds"
"""A gauge that prometheus_client 0.26 adds by itself (``process_collector.py``)."""


class ServedModel(NamedTuple):
    """What a server serves.

    Attributes:
        name: As requests have to call it.
        root: The folder or hub id that it was made of, as the server was told.
        max_model_len: Most tokens of prompt and answer together.
    """

    name: str
    root: str
    max_model_len: int


class Scores(NamedTuple):
    """What a server thinks of a text's tokens, from the second on.

    Attributes:
        ids: ``[tokens, top]`` int64: the likeliest next tokens; -1 where there are fewer.
        logprobs: ``[tokens, top]`` F64: theirs, natural; -inf where there are fewer.
        own: ``[tokens]`` F64: that of the text's own token.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    own: NDArray[np.float64]


class Client(Connection):
    """A server of vLLM's, and what it says of itself, of texts and of drafts."""

    @cached_property
    def model(self) -> ServedModel:
        """The one model it serves, the first where there are several."""
        answer = self.ask("GET", "/v1/models")
        try:
            (model, *_) = served_models(answer)
        except _UNLIKE:
            self.strange("/v1/models", answer)
        return model

    def version(self) -> str | None:
        """Of vLLM, as the server says; None where it says nothing that can be understood."""
        with suppress(GlmquantError):
            found = self.ask("GET", "/version")
            if isinstance(found, dict) and isinstance(found.get("version"), str):
                return printable(found["version"], 80)
        return None

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; special tokens written in it are taken as such, none are added."""
        return self._encoded({"prompt": text, "add_special_tokens": False})

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Token ids of a conversation, by the chat template that the server holds."""
        request: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        if tools:
            request["tools"] = list(tools)
        return self._encoded(request)

    def _encoded(self, request: dict[str, Any]) -> tuple[int, ...]:
        answer = self.ask("POST", "/tokenize", {"model": self.model.name} | request)
        try:
            return _token_ids(answer["tokens"])
        except _UNLIKE:
            self.strange("/tokenize", answer)

    def continue_greedily(self, prompt: Prompt, max_tokens: int) -> Answer:
        """The likeliest next tokens, so many, past any end of text."""
        answer = self._complete(prompt.tokens, max_tokens=max_tokens, logprobs=2)
        try:
            tokens = _token_ids(answer["token_ids"])
            gaps = tuple(_gap(top) for top in answer["logprobs"]["top_logprobs"])
        except _UNLIKE:
            self.strange("/v1/completions", answer)
        if len(tokens) != max_tokens or len(gaps) != max_tokens:
            self.strange("/v1/completions", answer)
        return Answer(tokens, gaps)

    def score(self, tokens: Sequence[int], top: int) -> Scores:
        """What it thinks of a text of at least two tokens.

        Args:
            tokens: The text.
            top: How many of the likeliest next tokens to tell.
        """
        answer = self._complete(tokens, max_tokens=1, prompt_logprobs=top)
        ids = np.full((len(tokens) - 1, top), -1, np.int64)
        logprobs = np.full((len(tokens) - 1, top), -np.inf)
        own = np.zeros(len(tokens) - 1)
        try:
            places = answer["prompt_logprobs"][1:]
            for row, place in enumerate(places):
                own[row] = place[str(tokens[row + 1])]["logprob"]
                best = sorted(place.items(), key=lambda each: each[1]["rank"])[:top]
                ids[row, : len(best)] = [int(token) for token, _ in best]
                logprobs[row, : len(best)] = [each["logprob"] for _, each in best]
        except _UNLIKE:
            self.strange("/v1/completions", answer)
        if len(places) != len(tokens) - 1 or not np.isfinite(own).all():
            self.strange("/v1/completions", answer)
        return Scores(ids, logprobs, own)

    def drafting(self) -> Drafting | None:
        """The counters of speculative decoding so far; None where the server has none."""
        return self.counters().drafting

    def counters(self) -> Counters:
        """The counters of speculative decoding so far, and since when there is who counts."""
        text = self.request("GET", "/metrics").decode("utf-8", "replace")
        counted: dict[str, float] = {}
        places: dict[int, float] = {}
        started: list[float] = []
        try:
            for family in text_string_to_metric_families(text):
                if family.name == _STARTED:
                    started += [sample.value for sample in family.samples]
                for sample in family.samples if family.name.startswith(_PREFIX) else ():
                    name = sample.name.removeprefix(_PREFIX).removesuffix("_total")
                    if "position" in sample.labels and name == "accepted_tokens_per_pos":
                        place = int(sample.labels["position"])
                        places[place] = places.get(place, 0) + sample.value
                    else:
                        counted[name] = counted.get(name, 0) + sample.value
            drafting = Drafting(
                int(counted["drafts"]),
                int(counted["draft_tokens"]),
                int(counted["accepted_tokens"]),
                tuple(int(places[place]) for place in sorted(places)),
            )
        except KeyError:
            drafting = None
        except (ValueError, OverflowError):
            self.strange("/metrics", text)
        return Counters(drafting, tuple(sorted(started)))

    def _complete(self, tokens: Sequence[int], **settings: Any) -> dict[str, Any]:
        request = {
            "model": self.model.name,
            "prompt": list(tokens),
            "temperature": 0,
            "ignore_eos": True,
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        answer = self.ask("POST", "/v1/completions", request | settings)
        try:
            first = answer["choices"][0]
        except (KeyError, TypeError, IndexError):
            self.strange("/v1/completions", answer)
        if not isinstance(first, dict):
            self.strange("/v1/completions", answer)
        return first


def remote_failure(url: str) -> Callable[..., NoReturn]:
    """What to raise about a server that somebody else started.

    Args:
        url: Its address.
    """

    def fail(what: str, *, found: str | None = None, hint: str | None = None) -> NoReturn:
        raise EngineError(
            what,
            where=url,
            expected="a vLLM server that answers",
            found=found,
            hint=hint or "see the server's own log; one that is still starting does not answer yet",
        )

    return fail


def served_models(answer: Any) -> tuple[ServedModel, ...]:
    """What the answer of ``/v1/models`` lists.

    Args:
        answer: As it came.

    Raises:
        ValueError: It is something else; or another of the errors that reading it raises.
    """
    return tuple(
        ServedModel(
            str(each["id"]),
            str(each.get("root") or ""),
            max(0, int(each.get("max_model_len") or 0)),
        )
        for each in answer["data"]
    )


def _token_ids(found: Any) -> tuple[int, ...]:
    """A list of token ids as it came, or ValueError."""
    if not isinstance(found, list) or not all(type(each) is int and each >= 0 for each in found):
        raise ValueError("no list of token ids")
    return tuple(found)


def _gap(top: Mapping[str, float]) -> float:
    best = sorted(top.values(), reverse=True)
    gap = best[0] - best[1]
    if not gap >= 0:
        raise ValueError("log-probabilities that are no numbers")
    return gap
