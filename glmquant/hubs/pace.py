"""How fast the line to a hub is: measured by each long fetch, kept in the user's cache."""

from __future__ import annotations

import platform
from typing import Final

from glmquant.errors import JsonError
from glmquant.jsontext import dump_object, parse_object
from glmquant.observer import Meter
from glmquant.usercache import read_cached, write_cached

LEAST_NBYTES: Final = 200_000_000
"""From which on a fetch says how fast the line is."""

_FILE: Final = "fetch-rate-{}.json"


def store_pace(hub: str, meter: Meter) -> None:
    """Keep how fast a fetch was for the next plan; after too few bytes it says nothing."""
    rate = meter.rate(LEAST_NBYTES)
    if rate is not None:
        fields = {"nbytes_per_second": rate, "machine": platform.node()}
        write_cached(_FILE.format(hub), dump_object(fields))


def load_pace(hub: str) -> int | None:
    """Bytes a second of the last long fetch from a hub on this machine; None without one."""
    file = _FILE.format(hub)
    data = read_cached(file)
    try:
        fields = parse_object(data, file) if data is not None else {}
    except JsonError:
        return None
    rate = fields.get("nbytes_per_second")
    is_ours = fields.get("machine") == platform.node()
    return rate if type(rate) is int and rate > 0 and is_ours else None
