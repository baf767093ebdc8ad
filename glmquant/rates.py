"""How fast weights are quantized: measured by each long run, kept in the user's cache."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import date
from typing import Final

from glmquant.errors import JsonError
from glmquant.jsontext import dump_object, parse_object
from glmquant.observer import Meter, Observer
from glmquant.usercache import read_cached, write_cached

RATE_FILES: Final = {False: "quantize-rate.json", True: "quantize-rate-searched.json"}
"""By whether scales were searched, which takes several times as long."""

LEAST_NBYTES: Final = 200_000_000
"""Source bytes from which on a run says how fast the machine is."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What was measured.

    Attributes:
        nbytes_per_second: Source bytes a second, everything included.
        workers: Threads.
        machine: Its host name, or for the reference what it is.
        nbytes: Source bytes that were quantized.
        day: ISO date of the run; neither is kept of the reference.
        is_searched: Scales were searched.
    """

    nbytes_per_second: int
    workers: int
    machine: str
    nbytes: int = 0
    day: str = ""
    is_searched: bool = False


_REFERENCE_MACHINE: Final = "2 cores of a Xeon (Sapphire Rapids, 2.3 GHz), source in page cache"

REFERENCES: Final = {
    False: Rate(1_950_000_000, 4, _REFERENCE_MACHINE),
    True: Rate(680_000_000, 4, _REFERENCE_MACHINE, is_searched=True),
}
"""Until this machine has been measured: medians of three runs on the 2.46 GB of ``wide-rows`` that
``tools/bench.py`` makes. A source that comes from a disk comes no faster than the disk."""


class RateMeter(Meter):
    """Passes everything on and measures how fast a run quantizes.

    Args:
        observer: Who wants to know, too.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer, "quantize")

    def measured(self, workers: int, *, is_searched: bool = False) -> Rate | None:
        """The rate up to now, or None after too little work to tell.

        Args:
            workers: Threads of the run.
            is_searched: Scales were searched.
        """
        rate = self.rate(LEAST_NBYTES)
        if rate is None:
            return None
        return Rate(
            nbytes_per_second=rate,
            workers=workers,
            machine=platform.node(),
            nbytes=self.nbytes,
            day=date.today().isoformat(),
            is_searched=is_searched,
        )


def store_rate(rate: Rate) -> None:
    """Keep the rate of this machine; that it cannot be kept is no error."""
    write_cached(RATE_FILES[rate.is_searched], dump_object(asdict(rate)))


def load_rate(*, is_searched: bool = False) -> Rate | None:
    """The last rate of this machine, or None; what does not make sense is taken for none.

    A home folder may be shared: a rate of another host is none of ours.
    """
    file = RATE_FILES[is_searched]
    data = read_cached(file)
    try:
        fields = parse_object(data, file) if data is not None else {}
        rate = Rate(**fields)
        date.fromisoformat(rate.day)
    except (JsonError, TypeError, ValueError):
        return None
    numbers = (rate.nbytes_per_second, rate.workers, rate.nbytes)
    if any(type(number) is not int for number in numbers):
        return None
    makes_sense = (
        rate.nbytes >= 0 and 10**5 <= rate.nbytes_per_second <= 10**12 and 1 <= rate.workers <= 256
    )
    is_ours = rate.machine == platform.node() and rate.is_searched is is_searched
    return rate if makes_sense and is_ours else None
