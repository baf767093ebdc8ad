"""A repository whose shards come one after the other, each gone again when it is done with.

They come as ``fetch`` brings them, into a folder of their own, so that each is held against the
hub's sum before it is read, and an interrupted run goes on with the parts that came.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from glmquant.errors import DiskSpaceError
from glmquant.fetched import FetchedFile
from glmquant.hubs.arrival import Arrival
from glmquant.hubs.fetch import Session
from glmquant.hubs.journal import Journal
from glmquant.hubs.outline import Outline
from glmquant.hubs.outputs import Output
from glmquant.hubs.patience import Stopped
from glmquant.hubs.prospect import SPARE_NBYTES, FetchPlan
from glmquant.hubs.record import record_what_came
from glmquant.hubs.source import HubSource
from glmquant.hubs.store import remove_store
from glmquant.hubs.taking import take_what_is_there
from glmquant.hubs.transfer import Transfer
from glmquant.index import is_shard_name
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.storage import free_nbytes, nearest, reading, writing
from glmquant.tensor_names import layer_of
from glmquant.writer import PART_SUFFIX

SHARDS_IN_FLIGHT: Final = 3
"""One that is quantized, one that lies ready, one that comes."""

_JOURNAL_NBYTES: Final = 1_000_000
"""Room for the journal and the file system's own."""

_WAIT_SECONDS: Final = 0.5
"""So that Ctrl-C is heard."""


class StreamedSource(HubSource):
    """The files of a repository while it is streamed.

    Used as a context: at its end nothing is under way any more, and what came stays for the same
    run again, until ``finish``.

    Args:
        session: The hub.
        outline: Its JSON, side files and headers.
        plan: Of a fetch of the whole repository into the folder that the shards come to.
        keeps: They stay there, and the whole repository comes.
        shards_in_flight: So many shards lie there at once, finished or not.
    """

    def __init__(
        self,
        session: Session,
        outline: Outline,
        plan: FetchPlan,
        *,
        keeps: bool = False,
        shards_in_flight: int = SHARDS_IN_FLIGHT,
    ) -> None:
        super().__init__(session, outline)
        self._plan = plan
        self._keeps = keeps
        self._most = shards_in_flight
        self._turn = threading.Condition()
        self._here: set[str] = set()
        self._begun: set[str] = set()
        """Shards that come or are here: they take room until they are done with."""
        self._came: dict[str, FetchedFile] = {}
        self._failure: BaseException | None = None
        self._journal: Journal | None = None
        self._transfer: Transfer | None = None
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """Where the shards come to."""
        return self._plan.folder

    def room_nbytes(self, files: Iterable[str]) -> int:
        """What the folder takes on its disk at most, beyond what it takes now.

        Args:
            files: The shards that may have to come.
        """
        if self._keeps:
            return self._plan.missing_nbytes + SPARE_NBYTES
        lengths = sorted((self.listing.files[file].nbytes for file in files), reverse=True)
        there = 0
        with suppress(OSError):
            there = sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())
        return max(0, sum(lengths[: self._most]) - there) + _JOURNAL_NBYTES

    def room_beside(self, target_dir: Path, files: Iterable[str]) -> int:
        """What of that is on the disk of the output; where it is another, there has to be room.

        Raises:
            DiskSpaceError: There is not.
        """
        needed = self.room_nbytes(files)
        here, there = nearest(self.folder), nearest(target_dir)
        with reading(here):
            if here.stat().st_dev == there.stat().st_dev:
                return needed
        free = free_nbytes(here)
        if free is not None and free < needed:
            raise DiskSpaceError(
                "the disk has too little room for the shards that come",
                where=str(self.folder),
                expected=f"{needed / 1e9:,.2f} GB free",
                found=f"{free / 1e9:,.2f} GB free",
                hint="make room, or let fewer come at once: --shards-in-flight 1",
            )
        return 0

    def expect(self, files: Iterable[str]) -> None:
        """Begin to fetch these shards, those of the MTP layer first; or all that lacks, to be kept.

        Raises:
            TargetError: A stranger's file is in the way, or another run is at work there.
            StorageError: The disk refuses.
        """
        wanted = set(files)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = journal = Journal(self.folder, self._plan.about)
        outputs = tuple(
            each for each in self._plan.wanted.outputs if self._keeps or each.name in wanted
        )
        if not self._keeps:
            self._clear(wanted)
        incoming = _Incoming(self, self._session.observer)
        there, _ = take_what_is_there(
            _narrowed(self._plan, outputs),
            journal,
            self._session.manner.workers,
            self._session.stop,
            incoming,
        )
        self._came |= there
        rest = sorted((each for each in outputs if each.name not in there), key=self._turn_of)
        with self._turn:
            self._here |= there.keys()
            self._begun |= self._here & wanted
        self._transfer = Transfer(
            self._session.objects(self.listing),
            self._session.patience,
            self._open,
            observer=incoming,
            stop=self._session.stop,
            may_begin=self._may_begin,
        )
        total = sum(each.nbytes for each in outputs)
        lacking = sum(each.nbytes for each in rest)
        incoming.start("fetch", total - lacking, total)
        self._thread = threading.Thread(target=self._bring, args=(rest,), daemon=True)
        self._thread.start()

    def _clear(self, wanted: set[str]) -> None:
        """Remove what an interrupted run left of shards that are done with."""
        for path in self.folder.iterdir():
            name = path.name.removesuffix(PART_SUFFIX)
            if is_shard_name(name) and name in self.listing.files and name not in wanted:
                with writing(path):
                    path.unlink()

    def _turn_of(self, output: Output) -> tuple[bool, bool, str]:
        """Small files, then the MTP layer, whose faults are to be seen early, then the rest."""
        model, header = self._plan.model, output.header
        first = model.num_hidden_layers if model else 0
        layers = [layer_of(ref.name) for ref in header.tensors] if header else []
        has_mtp = any(layer is not None and layer >= first for layer in layers)
        return header is not None, not has_mtp, output.name

    def _open(self, output: Output) -> Arrival:
        assert self._journal is not None  # noqa: S101 - it is opened before anything comes
        with self._turn:
            self._begun.add(output.name)
        return Arrival(output, self.folder, self._journal)

    def _may_begin(self, output: Output) -> bool:
        with self._turn:
            return self._keeps or output.header is None or len(self._begun) < self._most

    def _bring(self, outputs: list[Output]) -> None:
        assert self._transfer is not None  # noqa: S101
        try:
            self._came |= self._transfer.run(outputs, self._session.manner.workers)
        except BaseException as error:  # noqa: BLE001 - raised where the shards are waited for
            self._failure = error
        finally:
            with self._turn:
                self._turn.notify_all()

    def note_arrival(self, file: str) -> None:
        """A file is whole, proved and durable."""
        with self._turn:
            self._here.add(file)
            self._turn.notify_all()

    def arrived(self, files: Iterable[str], *, is_awaited: bool) -> str | None:
        """The first of these shards that is here.

        Raises:
            GlmquantError: What kept the next one from coming.
        """
        with self._turn:
            while True:
                found = next((file for file in files if file in self._here), None)
                if found is not None or not is_awaited:
                    return found
                if self._failure is not None:
                    raise _told(self._failure)
                self._turn.wait(_WAIT_SECONDS)

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the shard where it has come, else as ``HubSource`` does."""
        if file in self._here and is_shard_name(file):
            FolderSource.read_into(self, file, offset, buffer)
        else:
            super().read_into(file, offset, buffer)

    def locate(self, file: str) -> Path:
        """Where a file can be opened."""
        return (self.folder if file in self._here and is_shard_name(file) else self.path) / file

    def discard(self, file: str) -> None:
        """Make room for the next shard."""
        if self._keeps:
            return
        self.release(file)
        with writing(self.folder / file):
            (self.folder / file).unlink(missing_ok=True)
        with self._turn:
            self._here.discard(file)
            self._begun.discard(file)
        if self._transfer is not None:
            self._transfer.wake()

    def finish(self) -> None:
        """All is done: the shards that came are recorded, or their folder is removed.

        Raises:
            GlmquantError: What kept the rest from coming, where all of it is to be kept.
        """
        if not self._keeps:
            self.close()
            remove_store(self.folder)
            return
        if self._thread is None:
            self.expect(())
        assert self._thread is not None and self._journal is not None  # noqa: S101
        while self._thread.is_alive():
            self._thread.join(_WAIT_SECONDS)
        if self._failure is not None:
            raise _told(self._failure)
        record_what_came(self._plan, self._came, self._journal)
        self._journal.remove()

    def __enter__(self) -> StreamedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way."""
        self._session.stop.set()
        if self._transfer is not None:
            self._transfer.wake()
        if self._thread is not None:
            self._thread.join()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self.release_all()


class _Incoming(Observer):
    """Tells of what comes beside the work that is counted, and the source of its shards."""

    def __init__(self, source: StreamedSource, observer: Observer) -> None:
        self._source = source
        self._observer = observer
        self._is_fetching = False

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        self._is_fetching = doing == "fetch"
        if self._is_fetching:
            self._observer.expect(done_nbytes, total_nbytes)

    def tell(self, doing: str) -> None:
        self._observer.tell(doing)

    def warn(self, text: str) -> None:
        self._observer.warn(text)

    def advance(self, nbytes: int) -> None:
        if self._is_fetching:
            self._observer.arrive(nbytes)
        else:
            self._observer.tell("reading shards that are here already")

    def finish_shard(self, file: str, nbytes: int) -> None:
        self._source.note_arrival(file)


def _narrowed(plan: FetchPlan, outputs: tuple[Output, ...]) -> FetchPlan:
    """A plan for some of its outputs."""
    names = {each.name for each in outputs}
    local = replace(
        plan.local,
        kept={name: file for name, file in plan.local.kept.items() if name in names},
        to_check={name: paths for name, paths in plan.local.to_check.items() if name in names},
    )
    return replace(plan, wanted=replace(plan.wanted, outputs=outputs), local=local)


def _told(failure: BaseException) -> BaseException:
    return KeyboardInterrupt() if isinstance(failure, Stopped) else failure
