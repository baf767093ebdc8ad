"""The README.md of a checkpoint, as the hubs show it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, StrictUndefined

from glmquant.errors import UsageError
from glmquant.hubs.known import MODELS, HubName
from glmquant.identify import Identity, identify
from glmquant.inventory import Mtp, find_mtp
from glmquant.manifest import MANIFEST_FILE
from glmquant.markings import MODELSLIM_FORMATS, Format
from glmquant.observer import Observer
from glmquant.report.layers import layer_rows
from glmquant.report.sums import sum_files
from glmquant.results import read_results
from glmquant.runtime.launch import ServeRequest, serve_command
from glmquant.source import FolderSource
from glmquant.storage import reading
from glmquant.survey import Survey, printable, survey

CARD_FILE: Final = "README.md"
_MARK: Final = "card by glmquant: made again by the same command, unless this line goes"
_FORMATS: Final = (Format.GLMQUANT, *MODELSLIM_FORMATS)
RELEASES_LICENCE: Final = "mit"
"""Of the weights of GLM-4.5, 4.5-Air, 4.6 and 4.7."""


@dataclass(frozen=True, slots=True)
class Card:
    """A page.

    Attributes:
        text: It.
        notes: What could not be told, a sentence each.
        base_model: The model it says it was made of; None where that is not known.
    """

    text: str
    notes: tuple[str, ...]
    base_model: str | None


def is_card(path: Path) -> bool:
    """Whether a file is a card of ours, so that another may take its place.

    Raises:
        StorageError: It cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return _MARK.encode() in file.read(8000)


def make_card(
    folder: Path,
    *,
    hub: HubName,
    base_model: str | None = None,
    licence: str | None = None,
    name: str | None = None,
    observer: Observer,
) -> Card:
    """The card of a quantized checkpoint; every byte of its files is read.

    Args:
        folder: The checkpoint.
        hub: Whose names the front matter uses.
        base_model: ``owner/name`` of the BF16 weights; that of the release if left out.
        licence: Its identifier; that of the releases, ``mit``, if left out and one fits.
        name: What the model is called; the folder's name if left out.
        observer: Is told how far it is.

    Returns:
        The page.

    Raises:
        UsageError: The folder holds no finished W8A8 checkpoint, or the name is none.
        StorageError: A file cannot be read.
    """
    source = FolderSource(folder)
    found = survey(source)
    identity = identify(found)
    _require_quantized(folder, identity)
    mtp = find_mtp(found)
    files_found = {
        name: nbytes for name, nbytes in source.list_files().items() if name != CARD_FILE
    }
    base = base_model or _base_model(identity, hub)
    licence = licence or (RELEASES_LICENCE if identity.releases else None)
    results = read_results(folder)
    rows = layer_rows(found, mtp.layers)
    shown = name or folder.resolve().name
    if name is not None and (not name.strip() or not name.isprintable()):
        raise UsageError(
            "that is no name for a heading",
            where="--name",
            expected="a line of text",
            found=printable(repr(name)),
        )
    sums = sum_files(folder, files_found, observer)
    fields = {
        "mark": _MARK,
        "title": printable(shown),
        "word": shlex.quote(shown),
        "front_matter": _front_matter(base, licence, mtp, hub),
        "model": identity.model,
        "format": "W8A8" if identity.marking.format is Format.GLMQUANT else identity.text,
        "tool": identity.marking.tool,
        "mtp_layers": mtp.layers,
        "mtp_kind": mtp.kind,
        "tensors": f"{sum(row.tensors for row in rows):,}",
        "size": f"{sum(row.nbytes for row in rows) / 1e9:,.2f} GB of weights",
        "command": _command(shown, mtp),
        "recipe": _recipe(found),
        "rows": rows,
        "has_sqnr": any(row.median_db is not None for row in rows),
        "results": results,
        "nbytes": sum(each.nbytes for each in sums),
        "sums": sums,
    }
    notes = list(results.notes)
    if base is None:
        notes.append("base_model is left out: no one release fits; --base-model OWNER/NAME says it")
    if licence is None:
        notes.append("license is left out: no release fits; --license ID says it")
    return Card(_render(fields), tuple(notes), base)


def _require_quantized(folder: Path, identity: Identity) -> None:
    if identity.marking.format not in _FORMATS:
        raise UsageError(
            "this is no finished W8A8 checkpoint",
            where=str(folder),
            expected="an output of glmquant w8a8, or of msModelSlim",
            found=identity.text,
            hint=shlex.join(["glmquant", "inspect", str(folder)]),
        )


def _base_model(identity: Identity, hub: HubName) -> str | None:
    """The release's repository on a hub; None where several fit, or none does."""
    if len(identity.releases) != 1:
        return None
    alias = f"glm-{identity.releases[0]}".lower()
    for model in MODELS:
        if model.alias == alias:
            return model.repositories.get(hub) or next(iter(model.repositories.values()))
    return None


def _front_matter(base: str | None, licence: str | None, mtp: Mtp, hub: HubName) -> str:
    """YAML that the hub reads; ModelScope wants ``tasks`` and ``frameworks``, too."""
    fields: dict[str, Any] = {"license": licence} if licence else {}
    if base is not None:
        fields |= {"base_model": [base], "base_model_relation": "quantized"}
    fields["pipeline_tag"] = "text-generation"
    if hub is HubName.MODELSCOPE:
        fields |= {"tasks": ["text-generation"], "frameworks": ["pytorch"]}
    tags = ["ascend", "npu", "w8a8", "modelslim", *["mtp"] * bool(mtp.layers), "vllm-ascend"]
    return yaml.safe_dump(fields | {"tags": tags}, sort_keys=False, allow_unicode=True)


def _command(name: str, mtp: Mtp) -> str:
    request = ServeRequest(
        Path(name),
        8000,
        quantization="ascend",
        speculative_tokens=1 if mtp.layers else 0,
    )
    return shlex.join(serve_command(request))


def _recipe(found: Survey) -> dict[str, Any] | None:
    """What our manifest says of the recipe; None of others' checkpoints, or where it is damaged."""
    manifest = found.objects.get(MANIFEST_FILE, {})
    settings, rules = manifest.get("settings"), manifest.get("rules")
    if not isinstance(settings, dict) or not isinstance(rules, list):
        return None
    arithmetic = manifest.get("arithmetic")
    told = arithmetic if isinstance(arithmetic, dict) else {}
    searched = any(isinstance(rule, dict) and rule.get("scale") == "mse" for rule in rules)
    keys = ["W8A8_DYNAMIC", *["W8A8_DYNAMIC, scale mse"] * searched]
    return {
        "name": printable(str(settings.get("recipe"))),
        "rules": [
            rule
            for rule in rules
            if isinstance(rule, dict) and {"scheme", "scale", "roles"} <= rule.keys()
        ],
        "arithmetic": "\n\n".join(f"{key}: `{told[key]}`." for key in keys if key in told),
    }


_ENTITIES: Final = {ord(sign): f"&#{ord(sign)};" for sign in "&<>|`[]"}


def _cell(text: object) -> str:
    """A cell of a table: neither HTML nor links nor more cells, whatever a file says."""
    return printable(str(text), 200).translate(_ENTITIES)


def _render(fields: dict[str, Any]) -> str:
    environment = Environment(  # Markdown: hubs escape HTML themselves
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    source = files("glmquant.report").joinpath("card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(fields)
