"""Of what a finding is the sign, and what to type or change next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from glmquant.deploy.candidate import INLINE, LINES, call_form
from glmquant.deploy.data import Parser, load_engine
from glmquant.runtime.launch import speculative_config
from glmquant.smoke.findings import Finding, Sign
from glmquant.verify.remedies import SOURCE

DIR: Final = "DIR"
"""Stands in commands for the checkpoint, where its folder is not known here."""


class Cause(NamedTuple):
    """What a finding is the sign of.

    Attributes:
        text: The likely cause.
        hint: A command to type next; behind it, as the shell's comment, why or what else to do.
    """

    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Service:
    """What is known of the server that hints depend on.

    Attributes:
        url: Its address.
        root: What it says that it serves.
        model: As requests were told to call it; empty where they were not.
    """

    url: str
    root: str = ""
    model: str = ""

    @property
    def folder(self) -> str:
        """The checkpoint as a word of a command, where it lies here; else ``DIR``."""
        is_here = self.root.startswith("/") and Path(self.root).is_dir()
        return shlex.quote(self.root) if is_here else DIR

    @property
    def verify(self) -> str:
        """The command that checks the checkpoint."""
        return f"glmquant verify {self.folder}"

    @property
    def smoke(self) -> str:
        """The command that asks it once more."""
        named = f" --model {shlex.quote(self.model)}" if self.model else ""
        return f"glmquant smoke {self.url}{named}"

    @property
    def serve(self) -> str:
        """The command that prints how it is to be served."""
        return f"glmquant serve {self.folder}"


def cause_of(finding: Finding, service: Service) -> Cause:
    """What a finding is the sign of.

    Args:
        finding: The finding.
        service: Where it was found.
    """
    if finding.sign is Sign.CALL_TAG:
        return _call_parser(finding, service)
    if finding.sign in _SERVED:
        text, change = _SERVED[finding.sign]
        return Cause(text, f"{service.serve}   # prints the command; {change.format(**_flags())}")
    if finding.sign in _CHECKPOINT:
        # A wrong MTP layer may look like any other: only its source tells.
        beside = f" --source {SOURCE}" * (finding.sign in (Sign.REJECTED, Sign.SELDOM))
        return Cause(_CHECKPOINT[finding.sign], service.verify + beside)
    text, hint = _OTHER[finding.sign]
    return Cause(text, hint.format(url=service.url, verify=service.verify, smoke=service.smoke))


def no_drafting(service: Service) -> str:
    """How drafting is switched on where a server counts no drafts.

    Args:
        service: The server.
    """
    return (
        f"--speculative-config '{speculative_config(1)}' switches it on where the checkpoint has "
        f"an MTP layer: {service.serve} prints the command"
    )


def _flags() -> dict[str, str]:
    """The parsers as flags: of thinking, and of calls over lines and in one."""
    parsers = load_engine("vllm-ascend").parsers
    return {
        "reasoning": f"--reasoning-parser {_name(parsers.reasoning)}",
        LINES: f"--tool-call-parser {_name(parsers.lines)}",
        INLINE: f"--tool-call-parser {_name(parsers.inline)}",
    }


def _name(parsers: tuple[Parser, ...]) -> str:
    return parsers[0].name


def _call_parser(finding: Finding, service: Service) -> Cause:
    """By the form of the call that was not read: the release tells the parser."""
    flags = _flags()
    by_form = {
        LINES: f"over lines, as GLM-4.5 and 4.6 write it: {flags[LINES]}",
        INLINE: f"in one line, as GLM-4.7 writes it: {flags[INLINE]}",
    }
    form = call_form(finding.evidence)
    fitting = by_form.get(form or "", f"{flags[LINES]} for 4.5 and 4.6, {flags[INLINE]} for 4.7")
    return Cause(
        f"no tool-call parser, or another model's; the call stands {fitting}"
        if form
        else f"no tool-call parser, or another model's: {fitting}",
        f"{service.serve}   # prints the command with --enable-auto-tool-choice and the parser",
    )


_SERVED: Final[dict[Sign, tuple[str, str]]] = {
    Sign.NO_TOOLS: (
        "the server was started without tool calls",
        "--enable-auto-tool-choice with {lines} (4.5, 4.6) or {inline} (4.7)",
    ),
    Sign.BAD_CALL: (
        "the tool-call parser of another model, or a damaged chat template or weights",
        "{lines} is for 4.5 and 4.6, {inline} for 4.7",
    ),
    Sign.CALL_FINISH: (
        "the tool-call parser of another model, or a proxy that rewrites answers",
        "{lines} is for 4.5 and 4.6, {inline} for 4.7",
    ),
    Sign.THINK_TAG: ("no reasoning parser, or another model's", "{reasoning}"),
    Sign.ALL_THOUGHTS: (
        "a reasoning parser that does not know enable_thinking, so another model's",
        "{reasoning}",
    ),
    Sign.THOUGHTS_ONLY: (
        "the model never ended its thoughts, or the reasoning parser is another model's",
        "{reasoning}",
    ),
}
"""What another command line of the server would mend."""

_CHECKPOINT: Final[dict[Sign, str]] = {
    Sign.EMPTY: "an end-of-text token at once: a lost chat template, or damaged weights",
    Sign.REPLACED: "damaged weights, or a tokenizer of another model",
    Sign.LOOPED: "damaged weights or scales, or a lost chat template: greedy decoding or not, it "
    "says the same over and over; one character alone is the mark of NaN",
    Sign.TURN_MARK: "a lost chat template, generation_config.json without its eos_token_id, or a "
    "tokenizer that does not know its special tokens",
    Sign.NO_TURNS: "a lost chat template or tokenizer; or this is no GLM-4.5 to 4.7",
    Sign.NO_SWITCH: "a lost chat template, or another model's: thinking cannot be switched off",
    Sign.TOOLS_UNSEEN: "a lost chat template, or one without tools: no model sees a function",
    Sign.THINKS_STILL: "a lost chat template, or another model's; or the model does as it likes",
    Sign.REJECTED: "a broken MTP layer: of another model, grafted wrongly, or described as int8",
    Sign.SELDOM: "a small or badly fitting MTP layer, or answers that are hard to guess",
    Sign.UNLIKE_ITSELF: "a broken sampler of drafts, or numbers that depend on what else is in the "
    "batch; other requests at the same time make that likelier",
}
"""What lies in the checkpoint, or does not."""

_OTHER: Final[dict[Sign, tuple[str, str]]] = {
    Sign.SILENT: (
        "the server is not there, not ready, hangs, or something between cuts the line",
        "curl -i {url}/health   # then the server's own log; --timeout SECONDS waits longer",
    ),
    Sign.STRANGE: (
        "another service listens there, or a proxy answers in its place",
        "curl -i {url}/v1/models   # vLLM lists its models in JSON",
    ),
    Sign.KEY: (
        "the server asks for a key",
        "read -rs VLLM_API_KEY && export VLLM_API_KEY && {smoke}   # type the key: it is not shown",
    ),
    Sign.REDIRECTED: (
        "a proxy or another address: requests and keys are not sent on",
        "curl -i {url}/v1/models   # its Location is the address to ask in place of this one",
    ),
    Sign.NOT_THERE: (
        "another name of the model, or no OpenAI-compatible server",
        "curl {url}/v1/models   # then --model NAME",
    ),
    Sign.REFUSED: (
        "the server does not take such requests",
        "curl {url}/openapi.json   # what it takes; why it refused stands above and in its own log",
    ),
    Sign.BROKEN: (
        "the engine failed",
        "curl -i {url}/health   # then the server's own log: the first error in it counts",
    ),
    Sign.CUT: (
        "a limit of the server or of a proxy before it",
        "curl {url}/v1/models   # its max_model_len; what stands between may have a limit, too",
    ),
    Sign.LONG: (
        "the model has much to say, or finds no end",
        "{verify}   # or ask once more with a larger max_tokens",
    ),
    Sign.ENDLESS: (
        "the server does not keep to max_tokens, or something before it writes answers of its own",
        "curl {url}/version   # vLLM tells its own; then its log, and what stands before it",
    ),
    Sign.UNFINISHED: (
        "the engine aborted the request, or a proxy rewrites answers",
        "curl -i {url}/health   # then the server's own log",
    ),
    Sign.LOOPED_GREEDILY: (
        "greedy decoding, which such models do badly: with their own settings it ended",
        "{verify}   # looks for generation_config.json, which decides where no temperature is sent",
    ),
    Sign.WRONG: ("a small model; or damaged weights", "{verify}"),
    Sign.NO_NEEDLE: ("a small model; or damaged attention or KV cache", "{verify}"),
    Sign.SHORT_PROMPT: (
        "a server or a proxy that cuts prompts",
        "curl {url}/v1/models   # its max_model_len; truncate_prompt_tokens cuts prompts, too",
    ),
    Sign.STREAM: (
        "a proxy that rewrites or cuts streams, or an engine that failed meanwhile",
        "{smoke} --only plain,streaming   # of the server itself, past all proxies; see its log",
    ),
    Sign.STREAM_DIFFERS: (
        "the parser reads a stream in another way than a whole answer",
        "{smoke} --only plain,streaming   # with another vLLM; until then leave stream out",
    ),
    Sign.ONE_PIECE: (
        "a proxy that holds streams back",
        "{smoke} --only plain,streaming   # of the server itself; nginx needs proxy_buffering off",
    ),
    Sign.NO_CALL: (
        "the model's own choice: nothing in its answer looks like a call",
        "{verify}   # or ask another question",
    ),
    Sign.NO_THOUGHTS: (
        "the model's own choice",
        "{smoke} --only thinking-on   # or ask something harder",
    ),
    Sign.NO_DRAFTS: (
        "the counters are those of another process, or drafting is off for such requests",
        "curl {url}/metrics   # of the engine itself, past all proxies",
    ),
}
"""The rest: the line, the model's choice, the engine."""
