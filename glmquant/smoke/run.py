"""Asks one request after the other; one that fails does not keep the others from being asked."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from glmquant.errors import EngineError, UsageError
from glmquant.observer import Observer
from glmquant.runtime.chat import list_models
from glmquant.runtime.client import Client, ServedModel
from glmquant.runtime.connection import sendable
from glmquant.smoke import requests
from glmquant.smoke.ask import Asker, finding_of
from glmquant.smoke.causes import Service, no_drafting
from glmquant.smoke.drafts import NO_COUNTERS
from glmquant.smoke.findings import Report, Result, Sign, Verdict
from glmquant.survey import printable

SERVER: Final = "server"
"""The first line of a report: what is served."""

OTHERS: Final = "the counters are the server's own: what others ask meanwhile is in them"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be asked, and of whom.

    Attributes:
        url: The server.
        names: Of the requests.
        model: As requests call it; None for what the server lists first.
        long_tokens: Of the long prompt.
        limit_seconds: How long each request may take.
        api_key: The server's.
    """

    url: str
    names: tuple[str, ...] = requests.NAMES
    model: str | None = None
    long_tokens: int = requests.LONG_TOKENS
    limit_seconds: float = 300.0
    api_key: str | None = None


def smoke(wish: Wish, observer: Observer) -> Report:
    """Ask a service, and judge what it answers.

    Args:
        wish: What is to be asked.
        observer: Is told what is being asked.

    Raises:
        UsageError: The server does not serve the model that is named.
    """

    def fail(what: str, *, found: str | None = None, hint: str | None = None) -> NoReturn:
        raise EngineError(what, where=wish.url, found=found, hint=hint)

    client = Client(wish.url, fail, answer_seconds=wish.limit_seconds, api_key=wish.api_key)
    try:
        observer.tell(f"asking {client.url} what it serves")
        first, model = _server(client, wish)
        if model is None:
            results = [Result(name, "not asked", is_judged=False) for name in wish.names]
            return _report(client, wish, first, None, results)
        asker = Asker(client, model, wish.names, wish.long_tokens)
        return _report(client, wish, first, model, [*asker.results(observer)])
    finally:
        client.close()


def _report(
    client: Client, wish: Wish, first: Result, model: ServedModel | None, results: list[Result]
) -> Report:
    served = model or ServedModel("", "", 0)
    notes = []
    drafts = next((each for each in results if each.name == requests.DRAFTS), None)
    if drafts is not None and drafts.verdict is not Verdict.NOT_JUDGED:
        notes.append(OTHERS)
    elif drafts is not None and drafts.text == NO_COUNTERS:
        notes.append(no_drafting(Service(client.url, served.root)))
    found = tuple(_hidden(each, wish.api_key) for each in (first, *results))
    return Report(client.url, served.name, served.root, served.max_model_len, found, (*notes,))


def _server(client: Client, wish: Wish) -> tuple[Result, ServedModel | None]:
    """What is served; None where that is not known and nobody named it."""
    try:
        served = list_models(client)
    except EngineError as error:
        finding = finding_of(error)
        is_gone = finding.sign in (Sign.SILENT, Sign.KEY, Sign.REDIRECTED)
        if wish.model is None or is_gone:
            return Result(SERVER, finding.what, (finding,)), None
        finding = finding._replace(verdict=Verdict.WARNING)
        return Result(SERVER, finding.what, (finding,)), ServedModel(wish.model, "", 0)
    model = next((each for each in served if wish.model in (None, each.name)), None)
    if model is None:
        raise UsageError(
            "the server does not serve that model",
            where="--model",
            expected=printable(", ".join(each.name for each in served), 300),
            found=printable(wish.model or ""),
            hint=f"--model {shlex.quote(printable(served[0].name))}",
        )
    of = f" from {model.root}" if model.root else ""
    length = f", {model.max_model_len:,} tokens" if model.max_model_len else ""
    return Result(SERVER, f"{model.name}{of}{length}"), model


def _hidden(result: Result, key: str | None) -> Result:
    """The same without the key, which a server may send back."""
    key = sendable(key)
    if not key:
        return result
    findings = tuple(
        each._replace(
            what=each.what.replace(key, "(the key)"),
            evidence=each.evidence.replace(key, "(the key)"),
        )
        for each in result.findings
    )
    text, answer = (each.replace(key, "(the key)") for each in (result.text, result.answer))
    return replace(result, text=text, answer=answer, findings=findings)
