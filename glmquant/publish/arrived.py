"""Did everything arrive? The hub lists the repository, and each file has its length."""

from __future__ import annotations

from glmquant.errors import GlmquantError, HubError
from glmquant.hubs.fetch import Manner, opened
from glmquant.hubs.known import Reference
from glmquant.observer import Observer
from glmquant.publish.parcel import Parcel
from glmquant.reconcile import listing

_MANNER = Manner(workers=1, attempts=3, stall_seconds=30.0)


def check_arrival(to: Reference, parcel: Parcel, observer: Observer) -> str:
    """Hold the hub's list against what was sent.

    Args:
        to: The repository.
        parcel: What was sent.
        observer: Is told of setbacks.

    Returns:
        What was found, in a sentence: all is there, or the hub did not tell.

    Raises:
        HubError: A file is missing on the hub, or has another length.
    """
    try:
        with opened(to, _MANNER, observer) as session:
            listed = session.protocol.listing(to, None)
    except GlmquantError as error:
        return (
            f"whether all of it arrived was not checked: {error.what} ({error.found}); a private "
            "repository is listed with MODELSCOPE_API_TOKEN alone"
        )
    there = {each.path: each.nbytes for each in listed.files.values()}
    wrong = [name for name, nbytes in parcel.files.items() if there.get(name) != nbytes]
    if wrong:
        raise HubError(
            "the hub does not list all that was sent",
            where=to.text,
            expected=f"{len(parcel.files)} files with their lengths",
            found=f"{len(wrong)} missing or of another length: {listing(wrong)}",
            hint="run the same command again: it sends what is missing",
        )
    return f"the hub lists all {len(parcel.files)} files with their lengths"
