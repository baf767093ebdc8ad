"""What the checkpoint has already of what the source can give, and whether that is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from glmquant.errors import MismatchError
from glmquant.glm4_moe import optional_mtp_weights
from glmquant.graft.donor import Donor
from glmquant.graft.recipient import Recipient
from glmquant.graft.request import Request
from glmquant.graft.values import Likeness, compare, is_float
from glmquant.observer import Observer
from glmquant.reconcile import listing
from glmquant.tensor_names import layer_of
from glmquant.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has to be done.

    Attributes:
        missing: The source's tensors that are to be added, in the order of the model.
        kept_mtp: MTP tensors that are there and stay.
        adopted: Files that the index does not list and whose MTP tensors are right.
        dropped: File → MTP tensors and router biases that are to be taken out of it.
        is_improvable: What stays is the source's in value, yet not bit for bit.
        notes: What the user should know, a sentence each.
    """

    missing: tuple[TensorRef, ...]
    kept_mtp: tuple[str, ...]
    adopted: tuple[str, ...]
    dropped: dict[str, frozenset[str]]
    is_improvable: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    """The MTP tensors of a checkpoint.

    Attributes:
        refs: By name, those of files that the index does not list too.
        unlisted: Those files.
        notes: Files that are passed over.
    """

    refs: dict[str, TensorRef]
    unlisted: tuple[str, ...]
    notes: tuple[str, ...]


def judge(donor: Donor, recipient: Recipient, request: Request, observer: Observer) -> Verdict:
    """Hold the router biases and the MTP tensors that are there against the source's.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.
        request: What was asked: whether tensors may be taken out.
        observer: Told of what is read.

    Returns:
        What is to be added and taken out.

    Raises:
        MismatchError: A router bias or an MTP layer is not the source's, and may not be replaced.
        StorageError: One of the two cannot be read.
    """
    held = _held_mtp(donor, recipient)
    faults = _faults(donor, held)
    present = recipient.tensors()
    biases = {name: present[name] for name in donor.router_biases() if name in present}
    to_read = [*biases.values(), *(() if faults else held.refs.values())]
    if to_read and (request.replace_mtp or not faults):
        observer.start("compare", 0, sum(ref.nbytes for ref in to_read))
    if faults and not request.replace_mtp:
        raise _unlike(request, *faults[0], len(faults))
    wrong, rounded = _judge_biases(donor, recipient, biases, observer)
    if wrong and not request.replace_mtp:
        raise _wrong_biases(request, wrong, biases)
    widened: list[str] = []
    if not faults:
        faults, widened = _unequal(donor, recipient, held, observer)
    if faults and not request.replace_mtp:
        raise _unlike(request, *faults[0], len(faults))
    taken: list[TensorRef] = []
    kept, notes = held, list(held.notes)
    if request.replace_mtp:
        if faults or widened:
            kept = _Held({}, (), ())
            taken += held.refs.values()
        taken += [biases.pop(name) for name in (*wrong, *rounded)]
    else:
        notes += _notes(held, widened, rounded)
    dropped: dict[str, frozenset[str]] = {}
    for ref in taken:
        dropped[ref.file] = dropped.get(ref.file, frozenset()) | {ref.name}
    wanted = [*donor.router_biases(), *donor.mtp_tensors()]
    missing = [name for name in wanted if name not in biases and name not in kept.refs]
    return Verdict(
        missing=tuple(donor.tensors[name] for name in missing),
        kept_mtp=tuple(sorted(kept.refs)),
        adopted=kept.unlisted,
        dropped=dropped,
        is_improvable=bool(_wide_weights(held, widened) or rounded) and not request.replace_mtp,
        notes=tuple(notes),
    )


def _wide_weights(held: _Held, widened: list[str]) -> list[str]:
    """What is F32 and ought to be BF16, as ``verify`` counts it: biases may be either."""
    return [n for n in widened if held.refs[n].dtype == "F32" and n.endswith(".weight")]


def _notes(held: _Held, widened: list[str], rounded: list[str]) -> Iterator[str]:
    if wide := _wide_weights(held, widened):
        yield f"MTP tensors that are F32 of the source's values, twice the bytes: {len(wide)}"
    if rounded:
        yield f"router biases rounded to BF16, as the engine holds them: {len(rounded)}"


def _held_mtp(donor: Donor, recipient: Recipient) -> _Held:
    refs = {name: ref for name, ref in recipient.tensors().items() if donor.is_mtp(name)}
    unlisted, notes = [], []
    for file, tensors in recipient.unlisted.items():
        is_mtp = bool(tensors) and all(donor.is_mtp(ref.name) for ref in tensors)
        if is_mtp and not any(ref.name in refs for ref in tensors):
            refs |= {ref.name: ref for ref in tensors}
            unlisted.append(file)
        else:
            what = "a second copy of MTP tensors" if is_mtp else "others than MTP tensors"
            notes.append(f"{file} is not in the index, so that no engine loads it: {what}")
    return _Held(refs, tuple(unlisted), tuple(notes))


def _twin(donor: Donor, name: str) -> TensorRef | None:
    """What a tensor of the MTP layer has to be equal to.

    The engine shares embedding and head of the body where the layer has none; tools put copies of
    them there.
    """
    ref = donor.tensors.get(name)
    layer = layer_of(name)
    if ref is None and layer is not None:
        embedding, head = optional_mtp_weights(layer)
        body = {embedding: "model.embed_tokens.weight", head: "lm_head.weight"}.get(name, "")
        is_right_layer = 0 <= layer - donor.first_mtp_layer < donor.mtp_count
        ref = donor.tensors.get(body) if is_right_layer else None
    return ref


def _faults(donor: Donor, held: _Held) -> list[tuple[str, str, str]]:
    """Tensors that headers alone tell to be wrong: name, what was expected, what was found."""
    faults = []
    last = donor.first_mtp_layer + donor.mtp_count - 1
    for name, ref in held.refs.items():
        twin, layer = _twin(donor, name), layer_of(name)
        if layer is None or not donor.first_mtp_layer <= layer <= last:
            span = f"{donor.first_mtp_layer}" + f" to {last}" * (donor.mtp_count > 1)
            faults.append((f"{ref.file}: {name}", f"MTP layers {span}", f"layer {layer}"))
        elif twin is None:
            found = f"{ref.dtype} {list(ref.shape)}: it is quantized, or of another model"
            faults.append((f"{ref.file}: {name}", "no such tensor, as in the source", found))
        elif not is_float(ref) or prod(ref.shape) != prod(twin.shape) or ref.shape != twin.shape:
            faults.append(
                (
                    f"{ref.file}: {name}",
                    f"{twin.dtype} {list(twin.shape)}, as in the source",
                    f"{ref.dtype} {list(ref.shape)}",
                )
            )
    return faults


def _unequal(
    donor: Donor, recipient: Recipient, held: _Held, observer: Observer
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The first tensor with other values, and those of the same values in another dtype."""
    widened: list[str] = []
    for name, ref in held.refs.items():
        twin = _twin(donor, name)
        if twin is None:
            continue
        likeness = compare(recipient, ref, donor, twin, observer.advance)
        if likeness in (Likeness.OTHER, Likeness.ROUNDED):
            fault = (f"{ref.file}: {name}", "the source's values", likeness.value)
            return [fault], widened
        if likeness is Likeness.WIDENED:
            widened.append(name)
    return [], widened


def _unlike(request: Request, where: str, expected: str, found: str, count: int) -> MismatchError:
    more = f"; {count - 1} more like it" if count > 1 else ""
    return MismatchError(
        "the checkpoint has an MTP layer that is not the source's",
        where=where,
        expected=expected,
        found=found + more,
        hint=request.replacing,
    )


def _wrong_biases(
    request: Request, wrong: list[str], biases: dict[str, TensorRef]
) -> MismatchError:
    return MismatchError(
        "router biases of the checkpoint are not the source's",
        where=listing(f"{biases[name].file}: {name}" for name in wrong),
        expected="the source's values",
        found=f"others in {len(wrong)} of {len(biases)} layers",
        hint=request.replacing,
    )


def _judge_biases(
    donor: Donor, recipient: Recipient, biases: dict[str, TensorRef], observer: Observer
) -> tuple[list[str], list[str]]:
    """Router biases of other values, and those that are the source's but for their dtype."""
    wrong, rounded = [], []
    for name, ref in biases.items():
        wanted = donor.tensors[name]
        is_alike = is_float(ref) and ref.shape == wanted.shape
        likeness = (
            compare(recipient, ref, donor, wanted, observer.advance) if is_alike else Likeness.OTHER
        )
        if likeness is Likeness.OTHER:
            wrong.append(name)
        elif likeness is Likeness.ROUNDED or ref.dtype not in (wanted.dtype, "F32"):
            rounded.append(name)
    return wrong, rounded
