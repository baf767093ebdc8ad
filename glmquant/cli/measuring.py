"""What bench and eval have in common: who is asked, where results go, how they are shown."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.results import Result
    from glmquant.runtime.client import Client
    from glmquant.suites.run import Finished, Listener
    from glmquant.suites.task import Installed, Suite, Task

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--checkpoint",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="The checkpoint on this machine: results go into its .glmquant/results, and its "
        "tokenizer is used where a suite needs one.  [default: what the server says it serves, if "
        "it is on this machine; else results go into the working directory]",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 4096),
        default=16,
        show_default=True,
        help="Requests at once.",
    ),
    click.option("--seed", type=click.IntRange(0), default=1024, show_default=True, help="Of all."),
    click.option(
        "--machine", metavar="TEXT", default="", help="Where it is served, for the record."
    ),
    click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        help="An option of the suite's own; a wrong name lists them.",
    ),
    click.option(
        "--python",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="The Python that has the suite.  [default: its own environment, else the one found]",
    ),
    click.option("--install", is_flag=True, help="Install the suite first, where it is not."),
    click.option(
        "--torch-index",
        metavar="URL",
        envvar="GLMQUANT_TORCH_INDEX",
        show_envvar=True,
        help="With --install: the package index that torch alone is taken from.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be run, and ask nobody."),
    json_option,
)


def measuring_options(command: Command) -> Command:
    """The options of both verbs, in the order of their help.

    Args:
        command: The function of a verb.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_settings(given: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE`` each.

    Raises:
        UsageError: One is not, or a name is there twice.
    """
    from glmquant.errors import UsageError

    found: dict[str, str] = {}
    for text in given:
        name, is_there, value = text.partition("=")
        if not is_there or not name or name in found:
            raise UsageError(
                "--set wants each option once",
                expected="NAME=VALUE",
                found=text,
                hint="as in --set temperature=0.6",
            )
        found[name] = value
    return found


def require_url(text: str) -> str:
    """A server's address, without ``/v1``.

    Raises:
        UsageError: It is none.
    """
    from urllib.parse import urlsplit

    from glmquant.errors import UsageError

    is_address = False
    with suppress(ValueError):  # a port that is no number
        found = urlsplit(text)
        is_address = found.port != 0 and found.scheme in ("http", "https") and bool(found.hostname)
    if not is_address:
        raise UsageError(
            "that is no address of a server",
            expected="http://HOST:PORT, as vllm serve prints it at its start",
            found=text,
        )
    return text.rstrip("/").removesuffix("/v1")


def run_suite(
    ctx: click.Context,
    suite_name: str,
    task: Task,
    checkpoint: Path | None,
    *,
    machine: str,
    python: Path | None,
    is_installed_first: bool,
    torch_index: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the suite, run it, and show what came.

    Args:
        ctx: The verb's.
        suite_name: As ``--suite`` calls it.
        task: What is to be measured, as far as the command line says.
        checkpoint: The folder that was named, or None.
        machine: Where it is served.
        python: The interpreter that has the suite.
        is_installed_first: ``--install``.
        torch_index: For that.
        dry_run: Only say what would be done.
        as_json: JSON lines on stdout.

    Raises:
        UsageError: The suite does not measure that.
        MeasureError: It is not installed, or failed.
    """
    from glmquant.errors import UsageError
    from glmquant.suites.finding import find
    from glmquant.suites.known import SUITES

    suite = SUITES[suite_name]
    if task.mode not in suite.modes:
        raise UsageError(
            f"{suite.title} does not measure that",
            expected=f"one of {', '.join(suite.modes)}",
            found=task.mode,
        )
    folder = _checkpoint(checkpoint)
    task = replace(task, folder=folder)
    if dry_run:
        _echo_dry_run(suite, task, find(suite, python), as_json)
        return
    installed = _installed(suite, python, is_installed_first, torch_index, as_json)
    client = _client(task)
    try:
        notes: list[str] = []
        if client is not None:
            task = _ask_server(ctx, client, task, notes)
        finished = _measure(suite, task, installed, client, machine, as_json)
    finally:
        if client is not None:
            client.close()
    _show(finished, [*notes, *finished.notes], as_json)


def _checkpoint(named: Path | None) -> Path | None:
    from glmquant.errors import UsageError

    if named is not None and not (named / "config.json").is_file():
        raise UsageError(
            "--checkpoint names no checkpoint",
            where=str(named),
            expected="a folder with config.json",
            found="no such folder" if not named.is_dir() else "a folder without it",
        )
    return named


def _installed(
    suite: Suite, python: Path | None, is_first: bool, torch_index: str | None, as_json: bool
) -> Installed:
    from glmquant.cli.environments import install_observer
    from glmquant.errors import MeasureError
    from glmquant.suites import environment
    from glmquant.suites.finding import find

    found = find(suite, python)
    if found is not None:
        return found
    if not is_first:
        raise MeasureError(
            f"{suite.title} is not installed",
            expected=f"the package {suite.package}",
            found="no environment of its own, and none here or on PATH",
            hint="\n            ".join(environment.how_to_install(suite)),
        )
    observer = install_observer(as_json)
    try:
        return environment.install(suite, None, torch_index, observer=observer)
    except BaseException:
        observer.stop()
        raise


def _client(task: Task) -> Client | None:
    from glmquant.runtime.client import Client, remote_failure

    if task.url is None:
        return None
    return Client(task.url, remote_failure(task.url), api_key=task.api_key)


def _ask_server(ctx: click.Context, client: Client, task: Task, notes: list[str]) -> Task:
    """Name, folder and room as the server says them."""
    from glmquant.errors import UsageError

    model = client.model
    folder = task.folder
    if folder is None and model.root and (Path(model.root) / "config.json").is_file():
        folder = Path(model.root)
    task = replace(task, model=model.name, folder=folder)
    if task.mode != "accuracy" or not model.max_model_len:
        return task
    room = model.max_model_len - min(2048, model.max_model_len // 2)
    if task.max_out_len <= room:
        return task
    source = ctx.get_parameter_source("max_out_len")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(
            "the server has no room for so long an answer",
            where="--max-out-len",
            expected=f"{room:,} at most: --max-model-len is {model.max_model_len:,}, and a prompt "
            "has to fit, too",
            found=f"{task.max_out_len:,}",
        )
    notes.append(
        f"answers are cut at {room:,} tokens: the server serves no more than "
        f"{model.max_model_len:,} with the prompt; GLM's thoughts may be longer"
    )
    return replace(task, max_out_len=room)


def _measure(
    suite: Suite,
    task: Task,
    installed: Installed,
    client: Client | None,
    machine: str,
    as_json: bool,
) -> Finished:
    from glmquant.suites.run import measure

    into = task.folder or Path.cwd()
    engine = "" if client else f"vLLM {installed.version}"
    return measure(
        suite,
        task,
        installed,
        into,
        client=client,
        machine=machine,
        engine=engine,
        listener=_listener(as_json),
    )


def _listener(as_json: bool) -> Listener:
    """The suite's own words where somebody looks on, else only where its log is."""
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.suites.run import LOG_FILE, Listener

    class Lines(Listener):
        def begin(self, folder: Path, words: tuple[str, ...]) -> None:
            click.echo(f"$ {shlex.join(words)}", err=True)
            click.echo(f"log: {short_path(folder / LOG_FILE)}", err=True)

        def hear(self, data: bytes) -> None:
            if sys.stderr is not None and sys.stderr.isatty():
                text = data.decode("utf-8", "replace")
                # What a server wrote may be in it: nothing that a terminal obeys.
                kept = "".join(each for each in text if each >= " " or each in "\n\r\t")
                click.echo(kept, err=True, nl=False)

    class JsonLines(Listener):
        def begin(self, folder: Path, words: tuple[str, ...]) -> None:
            emit("suite", command=list(words), folder=str(folder))

    return JsonLines() if as_json else Lines()


def _echo_dry_run(suite: Suite, task: Task, found: Installed | None, as_json: bool) -> None:
    """The command, if the suite is there, and what it would be told; nothing is kept."""
    import tempfile

    from glmquant.cli.progress import emit
    from glmquant.suites.environment import how_to_install

    if found is None:
        if as_json:
            emit("plan", suite=suite.name, installed=False, command=None)
            return
        click.echo(f"{suite.title} is not installed")
        for line in how_to_install(suite):
            click.echo(f"  {line}")
        click.echo("nothing was run")
        return
    with tempfile.TemporaryDirectory() as scratch:
        call = suite.prepare(replace(task, model=task.model or "MODEL"), found, Path(scratch))
        files = sorted(
            str(path.relative_to(scratch)) for path in Path(scratch).rglob("*") if path.is_file()
        )
    words = [word.replace(scratch, "WORK") for word in call.words]
    if as_json:
        emit("plan", suite=suite.name, installed=True, version=found.version, command=words)
        return
    click.echo(f"{suite.title} {found.version}, {found.python}")
    click.echo(f"$ {shlex.join(words)}")
    click.echo(f"written before: {', '.join(files) or 'nothing'}")
    click.echo("nothing was run")


def _show(finished: Finished, notes: list[str], as_json: bool) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.cli.summary import echo_table
    from glmquant.suites.references import difference_from, references_of
    from glmquant.survey import printable

    run = finished.run
    rows = [["figure", "", "value", "95 %", "items"]]
    published: list[dict[str, Any]] = []
    for result in run.results:
        rows.append(_cells(result))
        for reference in references_of(result.dataset, result.metric):
            difference = difference_from(reference, result)
            p_value = None if difference is None else difference.p_value
            published.append(reference.model_dump() | {"p_value": p_value})
            low, high = reference.interval
            rows.append(
                [
                    f"  published: {reference.model}, {reference.machine}",
                    "" if p_value is None else _difference_text(p_value),
                    f"{reference.value:g} {reference.unit}",
                    f"{low:g} to {high:g}",
                    f"{reference.items:,}",
                ]
            )
    if as_json:
        emit(
            "run",
            file=str(finished.path),
            folder=str(finished.folder),
            published=published,
            notes=notes,
            **run.model_dump(mode="json", exclude={"items", "samples", "format"}),
        )
        return
    echo_table(rows, left=2)
    for note in notes:
        click.echo(f"note: {printable(note, 400)}")
    click.echo(f"kept: {short_path(finished.path)}; all that {run.suite} wrote is beside it")
    click.echo(f"next: glmquant compare {shlex.quote(short_path(finished.path))} OTHER")


def _cells(result: Result) -> list[str]:
    from glmquant.results import figure_text
    from glmquant.survey import printable

    spread = " to ".join(map(figure_text, result.interval or ()))
    return [
        printable(f"{result.dataset} {result.metric}", 60),
        "",
        f"{figure_text(result.value)} {result.unit}".rstrip(),
        spread,
        f"{result.items:,}" if result.items else "",
    ]


def _difference_text(p_value: float) -> str:
    from glmquant.suites.compare import LEAST_P

    return "no difference shown" if p_value >= LEAST_P else f"differs, p {p_value:.2g}"


def api_key() -> str | None:
    """The key of the server, as vLLM itself takes it."""
    return os.environ.get("VLLM_API_KEY")
