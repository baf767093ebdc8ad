"""What a graft will do and what it has done, for people and for JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from glmquant.glm4_moe import CONFIG_FILE
from glmquant.graft.prospect import Graft
from glmquant.graft.request import Request

MOST_LINES: Final = 8
"""Lines of a kind shown to people; --json lists all."""


def plan_fields(graft: Graft) -> dict[str, Any]:
    """A plan as JSON fields; lengths in bytes."""
    plan, verdict = graft.plan, graft.plan.verdict
    layers = graft.donor.checkpoint.config.num_hidden_layers
    return {
        "folder": str(graft.recipient.path),
        "source": str(graft.donor.source.path),
        "target": str(graft.target_dir),
        "way": plan.way.value,
        "format": graft.recipient.identity.text,
        "is_done": graft.is_done,
        "was_finished": graft.was_finished,
        "mtp_layers": list(range(layers, layers + graft.donor.mtp_count)),
        "add": [ref.name for ref in verdict.missing],
        "add_nbytes": sum(ref.nbytes for ref in verdict.missing),
        "take_out": {file: sorted(names) for file, names in verdict.dropped.items()},
        "read": _read_by_file(graft),
        "write": {shard.file: shard.nbytes for shard in plan.shards},
        "change": {name: len(data) for name, data in plan.small_files.items()},
        "config": list(plan.config_changes),
        "leave_out": list(plan.removed),
        "adopt": list(verdict.adopted),
        "modes": {
            name: {"before": f"{before:04o}", "after": f"{after:04o}"}
            for name, (before, after) in plan.modes.items()
        },
        "disk_nbytes": graft.needed_nbytes,
        "notes": list(plan.notes),
    }


def _read_by_file(graft: Graft) -> dict[str, int]:
    nbytes: dict[str, int] = {}
    for ref in graft.plan.verdict.missing:
        nbytes[ref.file] = nbytes.get(ref.file, 0) + ref.nbytes
    return dict(sorted(nbytes.items()))


def _what(graft: Graft) -> str:
    """What is added, in words."""
    from glmquant.tensor_names import is_router_bias

    first = graft.donor.first_mtp_layer
    names = [ref.name for ref in graft.plan.verdict.missing]
    mtp = [name for name in names if int(name.split(".")[2]) >= first]
    if all(map(is_router_bias, mtp)):
        mtp = []
    biases = len(names) - len(mtp)
    layers = sorted({name.split(".")[2] for name in mtp}, key=int)
    parts = []
    if mtp:
        noun = "layers" if len(layers) > 1 else "layer"
        parts.append(f"{len(mtp)} tensor{'s' * (len(mtp) > 1)} of MTP {noun} {', '.join(layers)}")
    if biases:
        parts.append(f"{biases} router bias{'es' * (biases > 1)}")
    return " and ".join(parts) or "no tensor"


def echo_plan(graft: Graft, *, is_dry: bool) -> None:
    """The notes, and in a dry run every file that would be read, written or changed."""
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import nbytes_text

    plan, verdict = graft.plan, graft.plan.verdict
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)
    if not is_dry:
        return
    name = short_path(graft.recipient.path)
    if graft.is_done:
        click.echo(f"{name}: nothing is missing, nothing would be written")
        _echo_exact(graft)
        return
    added = sum(ref.nbytes for ref in verdict.missing)
    ways = {
        "in place": "in place",
        "swap": "in a folder of links that is swapped in",
        "output": f"into {short_path(graft.target_dir)}",
    }
    click.echo(f"{name}: {_what(graft)}, {nbytes_text(added)}, {ways[plan.way.value]}")
    _echo_rows("read", [(file, nbytes_text(size)) for file, size in _read_by_file(graft).items()])
    _echo_rows("write", [(s.file, nbytes_text(s.nbytes)) for s in plan.shards])
    _echo_rows(
        "change",
        [(file, f"{nbytes_text(len(data))}") for file, data in plan.small_files.items()],
    )
    _echo_rows(
        "take out",
        [
            (file, f"{len(names)} tensor{'s' * (len(names) > 1)}")
            for file, names in verdict.dropped.items()
        ],
    )
    _echo_rows("config.json", [(text, "") for text in plan.config_changes])
    _echo_rows("list in the index", [(file, "") for file in verdict.adopted])
    _echo_rows("leave out", [(file, "") for file in plan.removed])
    _echo_rows(
        "mode",
        [(file, f"{before:04o} -> {after:04o}") for file, (before, after) in plan.modes.items()],
    )
    click.echo(f"disk: at most {nbytes_text(graft.needed_nbytes)}")
    _echo_exact(graft)


def _echo_rows(title: str, rows: list[tuple[str, str]]) -> None:
    from glmquant.cli.summary import echo_table

    if rows:
        click.echo(f"{title}:")
        echo_table(rows[:MOST_LINES], left=1)
    if len(rows) > MOST_LINES:
        click.echo(f"  and {len(rows) - MOST_LINES} more: --json lists all")


def changes(graft: Graft) -> list[str]:
    """What is other than before in JSON files, for people."""
    told = [f"{CONFIG_FILE}: {text}" for text in graft.plan.config_changes]
    return [*told, *graft.plan.json_changes]


def exact_command(graft: Graft) -> str | None:
    """What makes tensors that are equal in value the source's bit for bit, if any are not."""
    from glmquant.graft.backup import way_free

    if not graft.plan.verdict.is_improvable:
        return None
    target, source = shown_path(graft.target_dir), shown_path(graft.request.source)
    request = Request(target, source, None, replace_mtp=True)
    first = way_free(request, graft.target_dir) if graft.target_dir.exists() else None
    return f"{first} && {request.again}" if first else request.again


def _echo_exact(graft: Graft) -> None:
    if step := exact_command(graft):
        click.echo(f"bit for bit as in the source: {step}")


def echo_done(graft: Graft, step: str) -> None:
    """What was done, what to type next, and what an undo needs."""
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import nbytes_text
    from glmquant.graft.backup import backup_of

    target = shown_path(graft.target_dir)
    if graft.is_done:
        begun = "the interrupted graft is finished; " * graft.was_finished
        click.echo(f"{target}: {begun}nothing is missing")
    else:
        verdict, shard = graft.plan.verdict, graft.plan.grafted
        added = sum(ref.nbytes for ref in verdict.missing)
        where = f", {nbytes_text(added)} in {shard.file}" if shard else ""
        taken = sum(map(len, verdict.dropped.values()))
        where += f", {taken} taken out before" if taken else ""
        done = (
            f"{_what(graft)} added{where}" if verdict.missing else "mended, no tensor was missing"
        )
        click.echo(f"{target}: {done}")
        if changed := changes(graft):
            click.echo(f"changed: {'; '.join(changed)}")
    _echo_exact(graft)
    click.echo(f"next: {step}")
    backup = backup_of(graft.target_dir)
    if backup is None or graft.is_done:
        return
    request = Request(target, graft.request.source)
    click.echo(f"undo: {request.undo}")
    click.echo(
        f"backup: {nbytes_text(backup.nbytes)} on the disk in {short_path(backup.path)}, which "
        f"--undo needs; to free them: {request.forget}"
    )


def shown_path(path: Path) -> Path:
    """A path for messages: from the working directory where it lies in there."""
    from glmquant.cli.folders import short_path

    return Path(short_path(path))
