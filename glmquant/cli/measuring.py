"""A run of a suite for bench and eval: who is asked, where results go, how they are shown."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.figures import show_run

if TYPE_CHECKING:
    from glmquant.cli.measuring_options import Measuring
    from glmquant.runtime.client import Client
    from glmquant.suites.run import Finished, Listener
    from glmquant.suites.task import Installed, Suite, Task


def run_suite(
    ctx: click.Context,
    suite_name: str,
    task: Task,
    checkpoint: Path | None,
    options: Measuring,
) -> None:
    """Find the suite, run it, and show what came.

    Args:
        ctx: The verb's.
        suite_name: As ``--suite`` calls it.
        task: What is to be measured, as far as the command line says.
        checkpoint: The folder that was named, or None.
        options: What is the same of both verbs.

    Raises:
        UsageError: The suite does not measure that, or an option is wrong.
        MeasureError: It is not installed, or failed.
    """
    from glmquant.errors import UsageError
    from glmquant.suites.finding import find
    from glmquant.suites.known import SUITES

    ctx.meta["glmquant.starts_anew"] = True
    as_json = options.as_json
    task = options.complete(task)
    suite = SUITES[suite_name]
    if task.mode not in suite.modes:
        raise UsageError(
            f"{suite.title} does not measure that",
            where="--mode",
            expected=" or ".join(mode for mode in suite.modes if mode != "accuracy"),
            found=task.mode,
            hint="a folder is measured by --suite vllm; AISBench wants the URL of a server",
        )
    task = replace(task, folder=_checkpoint(checkpoint))
    if options.dry_run:
        _echo_dry_run(suite, task, find(suite, options.python), as_json)
        return
    installed = _installed(suite, options)
    client = _client(task)
    try:
        notes: list[str] = []
        if client is not None:
            task = _ask_server(ctx, client, task, notes)
        finished = _measure(suite, task, installed, client, options)
    finally:
        if client is not None:
            client.close()
    if task.mode in ("latency", "throughput") and not task.settings.get("speculative_tokens"):
        notes.append("nothing was drafted: --set speculative_tokens=1 runs it with its MTP layer")
    show_run(finished, [*notes, *finished.notes], as_json)


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


def _installed(suite: Suite, options: Measuring) -> Installed:
    from glmquant.cli.environments import install_observer
    from glmquant.errors import MeasureError
    from glmquant.suites import environment
    from glmquant.suites.finding import find

    found = find(suite, options.python)
    if found is not None:
        return found
    if not options.install:
        raise MeasureError(
            f"{suite.title} is not installed",
            expected=f"the package {suite.package}",
            found="no environment of its own, and none here or on PATH",
            hint="\n            ".join(environment.how_to_install(suite)),
        )
    observer = install_observer(options.as_json)
    try:
        return environment.install(suite, None, options.torch_index, observer=observer)
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
    model = client.model
    task = replace(task, model=model.name, folder=task.folder or _root(model.root))
    if not model.max_model_len:
        return task
    if task.mode == "accuracy":
        return _with_room(ctx, task, model.max_model_len, notes)
    if task.data is None and task.dataset == "random":
        _require_room(task, model.max_model_len)
    return task


def _root(told: str) -> Path | None:
    """The folder that a server names, where it is a checkpoint on this machine."""
    with suppress(OSError, ValueError):  # a name that no file can have
        if told and (Path(told) / "config.json").is_file():
            return Path(told)
    return None


def _require_room(task: Task, max_model_len: int) -> None:
    """Prompt and answer of a made-up request have to fit.

    Raises:
        UsageError: They do not.
    """
    from glmquant.errors import UsageError

    both = task.input_len + task.output_len
    if both <= max_model_len:
        return
    half = max(1, max_model_len // 2)
    raise UsageError(
        "prompt and answer are longer than the server takes",
        where="--input-len and --output-len",
        expected=f"{max_model_len:,} tokens together, its --max-model-len",
        found=f"{task.input_len:,} + {task.output_len:,}",
        hint=f"--input-len {half} --output-len {half}",
    )


def _with_room(ctx: click.Context, task: Task, max_model_len: int, notes: list[str]) -> Task:
    """An answer may be as long as the server has room for beside a prompt.

    Raises:
        UsageError: The user wants a longer one.
    """
    from glmquant.errors import UsageError

    room = max_model_len - min(2048, max_model_len // 2)
    if task.max_out_len <= room:
        return task
    source = ctx.get_parameter_source("max_out_len")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError(
            "the server has no room for so long an answer",
            where="--max-out-len",
            expected=f"{room:,} at most: --max-model-len is {max_model_len:,}, and a prompt "
            "has to fit, too",
            found=f"{task.max_out_len:,}",
            hint=f"--max-out-len {room}, or serve it with a larger --max-model-len",
        )
    notes.append(
        f"answers are cut at {room:,} tokens: the server serves no more than "
        f"{max_model_len:,} with the prompt; GLM's thoughts may be longer"
    )
    return replace(task, max_out_len=room)


def _measure(
    suite: Suite,
    task: Task,
    installed: Installed,
    client: Client | None,
    options: Measuring,
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
        machine=options.machine,
        engine=engine,
        listener=_listener(options.as_json),
    )


def _listener(as_json: bool) -> Listener:
    """The suite's own words where somebody looks on, else only where its log is."""
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.suites.run import LOG_FILE, Listener
    from glmquant.survey import printable

    class Lines(Listener):
        def begin(self, folder: Path, words: tuple[str, ...]) -> None:
            click.echo(f"$ {printable(shlex.join(words), 4000)}", err=True)
            click.echo(f"log: {short_path(folder / LOG_FILE)}", err=True)

        def hear(self, data: bytes) -> None:
            if sys.stderr is not None and sys.stderr.isatty():
                text = data.decode("utf-8", "replace")
                # What a server wrote may be in it: nothing that a terminal obeys.
                kept = "".join(each for each in text if each.isprintable() or each in "\n\r\t")
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
    from glmquant.survey import printable

    if found is None:
        if as_json:
            emit("plan", suite=suite.name, installed=False, command=None)
            return
        click.echo(f"{suite.title} is not installed")
        for line in how_to_install(suite):
            click.echo(f"  {line}")
        click.echo("nothing was run")
        return
    if task.mode == "serve" and task.folder is None:
        if as_json:
            emit("plan", suite=suite.name, installed=True, version=found.version, command=None)
            return
        click.echo(f"{suite.title} {found.version}, {found.python}")
        click.echo("the checkpoint is the one that the server names; --checkpoint DIR, with it its")
        click.echo("command is shown here")
        click.echo("nothing was run")
        return
    with tempfile.TemporaryDirectory() as scratch:
        call = suite.prepare(replace(task, model=task.model or "MODEL"), found, Path(scratch))
        written = {
            str(path.relative_to(scratch)): path.read_text(encoding="utf-8").replace(
                scratch, "WORK"
            )
            for path in sorted(Path(scratch).rglob("*"))
            if path.is_file()
        }
    words = [word.replace(scratch, "WORK") for word in call.words]
    shown = {name: text for name, text in written.items() if name.endswith((".py", ".yaml"))}
    if as_json:
        version, files = found.version, {"written": list(written), "configuration": shown}
        emit("plan", suite=suite.name, installed=True, version=version, command=words, **files)
        return
    click.echo(f"{suite.title} {found.version}, {found.python}")
    click.echo(f"$ {printable(shlex.join(words), 4000)}")
    click.echo(f"written before, into the run's own folder WORK: {', '.join(written) or 'nothing'}")
    for name, text in shown.items():
        click.echo(f"--- {name}")
        click.echo(text.rstrip())
    click.echo("nothing was run")
