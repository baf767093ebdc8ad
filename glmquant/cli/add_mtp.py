"""``glmquant add-mtp``: the MTP layer and the router biases go into a quantized checkpoint."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import json_option
from glmquant.errors import UsageError

if TYPE_CHECKING:
    from glmquant.graft.prospect import Graft
    from glmquant.hubs.known import Reference


@click.command(
    "add-mtp",
    short_help="Graft the MTP layer and router biases into a quantized checkpoint.",
    epilog="Example: glmquant add-mtp GLM-4.6-W8A8 --from GLM-4.6",
    options_metavar="--from SOURCE [OPTIONS]",
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="The BF16 folder that DIR was made of, what fetch --only mtp takes of it, or its name on "
    "a hub, as glm-4.6: the bytes that are needed are then fetched.",
)
@click.option("--source", "alias", hidden=True, help="As verify calls it.")
@click.option(
    "--output",
    metavar="NEW",
    type=click.Path(path_type=Path),
    help="Write the result there and leave DIR as it is; untouched shards are linked.",
)
@click.option(
    "--replace-mtp",
    is_flag=True,
    help="Take out an MTP layer that is F32, quantized or of another release, and router biases "
    "that are zero or not the source's, and put the source's in.",
)
@click.option(
    "--undo",
    is_flag=True,
    help="Put DIR back as it was, byte for byte. One graft at a time can be undone.",
)
@click.option("--forget", is_flag=True, help="Remove what --undo would need, for good.")
@click.option("--dry-run", is_flag=True, help="Say what would be read and written; write nothing.")
@json_option
@click.pass_context
def add_mtp(
    ctx: click.Context,
    folder: str | None,
    source: str | None,
    alias: str | None,
    output: Path | None,
    replace_mtp: bool,
    undo: bool,
    forget: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Graft into DIR, quantized, what SOURCE has and it lacks.

    That is the MTP layer, bit for bit, and the router biases, which msModelSlim drops in every
    layer.

    Checkpoints of glmquant and of msModelSlim (v0, v1, Hugging Face names) are taken. Only what is
    missing is read of SOURCE, a folder or a model on a hub. Whether DIR was made of it is told by
    shapes and values.

    The same command goes on where an interrupted one stopped; DIR loads at any moment, as before
    or as after. Files that fewer may read than the others are opened to the readers of the others.
    DIR may be left out where the working directory holds one such checkpoint.

    Exits with 0 where DIR now has all, 1 where it is refused (a rotated body, a source of another
    model or release, or without an MTP layer; other MTP tensors without --replace-mtp; a second
    graft before --undo or --forget) or the disk refuses, 2 for wrong usage.
    """
    ctx.meta["glmquant.json"] = as_json
    if source and alias:
        raise UsageError(
            "--source is another word for --from",
            where="--source",
            expected="one of the two",
            found="both",
            hint=shlex.join(["glmquant", "add-mtp", folder or "DIR", "--from", source]),
        )
    source = source or alias
    words = typed_words(source, output, replace_mtp, undo, forget, dry_run)
    _require_sense(folder, source, words, undo=undo, forget=forget)
    from glmquant.cli.folders import choose_quantized, choose_source
    from glmquant.cli.remote import hub_reference

    path = Path(folder) if folder and _is_between_names(folder) else None
    path = path or choose_quantized(folder, "add-mtp", words)
    if undo or forget:
        _end(path, undo=undo, as_json=as_json)
        return
    reference = hub_reference(source)
    if reference is None:
        _graft(path, choose_source(source, "add-mtp"), output, replace_mtp, dry_run, as_json)
    else:
        _graft_from_hub(path, reference, output, replace_mtp, dry_run, as_json)


def _end(path: Path, *, undo: bool, as_json: bool) -> None:
    from glmquant.cli.grafted import shown_path
    from glmquant.cli.progress import emit
    from glmquant.graft import run
    from glmquant.graft.request import command

    lost = None
    if undo:
        run.undo(path)
    else:
        lost = run.forget(path)
    done = "undone" if undo else "forgotten"
    step = command("verify", shown_path(path))
    if as_json:
        emit("done", folder=str(path), done=done, notes=[lost] * bool(lost), next=step)
        return
    click.echo(f"{shown_path(path)}: the graft is {done}")
    if lost:
        click.echo(f"note: {lost}", err=True)
    click.echo(f"next: {step}")


def _graft_from_hub(
    path: Path,
    reference: Reference,
    output: Path | None,
    replace_mtp: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from glmquant.cli.grafted import shown_path
    from glmquant.cli.hub_donor import echo_reading, fetched_donor, has_all, remove_rest
    from glmquant.cli.progress import emit
    from glmquant.graft.request import command

    if output is None and not replace_mtp and path.is_dir() and has_all(path):
        step = command("verify", shown_path(path), "--source", reference.text)
        if not dry_run:
            remove_rest(path)
        if as_json:
            emit(
                "done", folder=str(path), already_done=True, tensors=0, written_nbytes=0, next=step
            )
        else:
            click.echo(f"{shown_path(path)}: nothing is missing\nnext: {step}")
    elif dry_run:
        echo_reading(path, reference, as_json=as_json)
    else:
        with fetched_donor(path, reference, as_json=as_json) as source:
            _graft(path, source, output, replace_mtp, False, as_json, called=reference.text)


def _graft(
    path: Path,
    source: Path,
    output: Path | None,
    replace_mtp: bool,
    dry_run: bool,
    as_json: bool,
    *,
    called: str | None = None,
) -> None:
    from glmquant.cli.grafted import (
        changes,
        echo_done,
        echo_plan,
        exact_command,
        plan_fields,
        shown_path,
    )
    from glmquant.cli.progress import emit, progress
    from glmquant.graft import run
    from glmquant.graft.backup import backup_of
    from glmquant.graft.request import command

    def show(graft: Graft) -> None:
        if as_json:
            emit("plan", **plan_fields(graft))
        else:
            echo_plan(graft, is_dry=dry_run)

    with progress(as_json) as observer:
        graft = run.add_mtp(
            path,
            source,
            output=output,
            replace_mtp=replace_mtp,
            dry_run=dry_run,
            observer=observer,
            show=show,
        )
    if dry_run:
        return
    from glmquant.cli.remote import part_of

    against = called or part_of(source) or shown_path(source)
    step = command("verify", shown_path(graft.target_dir), "--source", against)
    if called is not None:  # the folder that was read goes in a moment
        graft = replace(graft, request=replace(graft.request, source=Path(called)))
    if as_json:
        backup = backup_of(graft.target_dir)
        emit(
            "done",
            folder=str(graft.target_dir),
            already_done=graft.is_done,
            tensors=len(graft.plan.verdict.missing),
            changes=changes(graft),
            written_nbytes=0 if graft.is_done else graft.plan.written_nbytes,
            backup=str(backup.path) if backup else None,
            backup_nbytes=backup.nbytes if backup else 0,
            exact=exact_command(graft),
            next=step,
        )
        return
    echo_done(graft, step)
    if is_swapped_from_inside(graft):
        click.echo(f"note: this shell is in the old folder now: cd {graft.target_dir}", err=True)


def typed_words(
    source: str | None,
    output: Path | None,
    replace_mtp: bool,
    undo: bool,
    forget: bool,
    dry_run: bool,
) -> list[str]:
    """The options as they were typed, for hints."""
    words = ["--from", source] if source else []
    words += ["--output", str(output)] if output else []
    words += ["--replace-mtp"] * replace_mtp + ["--undo"] * undo + ["--forget"] * forget
    return words + ["--dry-run"] * dry_run


def _require_sense(
    folder: str | None, source: str | None, words: list[str], *, undo: bool, forget: bool
) -> None:
    """The options fit each other.

    Raises:
        UsageError: They do not.
    """
    verb = "--undo" if undo else "--forget"
    begin = shlex.join(["glmquant", "add-mtp", *([folder] if folder else [])])
    if (undo or forget) and words != [verb]:
        raise UsageError(
            f"{verb} takes no other option",
            where=verb,
            expected="the checkpoint alone",
            found=", ".join(word for word in words if word.startswith("--") and word != verb),
            hint=f"{begin} {verb}",
        )
    if not (undo or forget or source):
        raise UsageError(
            "no source was named",
            where="--from",
            expected="the BF16 folder that the checkpoint was made of",
            found="no such option",
            hint=shlex.join(["glmquant", "add-mtp", folder or "DIR", "--from", "SOURCE", *words]),
        )


def _is_between_names(folder: str) -> bool:
    """Whether a swap was killed between two renames, so that the folder is not there."""
    from glmquant.graft.backup import Siblings

    path = Path(folder).absolute()
    return not path.exists() and bool(path.name) and Siblings(path).aside.exists()


def is_swapped_from_inside(graft: Graft) -> bool:
    """Whether the working directory is the folder that has just made place for another."""
    from glmquant.graft.backup import Siblings

    with suppress(OSError):
        here = Path.cwd()
        old = Siblings(graft.target_dir).old
        return not graft.is_done and old in (here, *here.parents)
    return False
