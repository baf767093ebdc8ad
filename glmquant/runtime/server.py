"""A server of our own: started, awaited, watched and ended, whatever happens to either of us."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from glmquant.errors import EngineError
from glmquant.observer import Observer
from glmquant.runtime import guard
from glmquant.runtime.client import Client
from glmquant.runtime.serverlog import read_cause, read_tail
from glmquant.storage import writing

LONGEST_TEMPORARY: Final = 40
"""Characters of a folder under which vLLM's sockets still have room."""

_POLL_SECONDS: Final = 0.5


def free_port() -> int:
    """A TCP port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def short_temporary_folder() -> str:
    """The folder for temporary files, or /tmp where its path is long."""
    named = tempfile.gettempdir()
    return named if len(named) <= LONGEST_TEMPORARY else "/tmp"


class Server:
    """A running server.

    Attributes:
        client: Asks it.
        log: The file that holds all it writes.
        scratch: The folder of its temporary files, removed with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        log: Path,
        answer_seconds: float,
        api_key: str | None = None,
    ) -> None:
        self.log = log
        self.client = Client(url, self.fail, answer_seconds=answer_seconds, api_key=api_key)
        with writing(log), log.open("wb") as output:
            # Sockets lie in it, whose paths may have 107 characters.
            self.scratch = Path(tempfile.mkdtemp(prefix="gq-", dir=short_temporary_folder()))
            guarded = [sys.executable, "-I", "-S", guard.__file__, str(self.scratch), str(log)]
            self._guard = subprocess.Popen(
                [*guarded, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for us; the server's end is by the pipe
            )

    def await_ready(
        self,
        what: str,
        limit_seconds: float,
        observer: Observer,
        until: threading.Event | None = None,
    ) -> None:
        """Return when it answers.

        Args:
            what: What it serves, for progress.
            limit_seconds: How long that may take.
            observer: Is told what the server says meanwhile.
            until: Once set, it is not awaited any longer.

        Raises:
            EngineError: It ended, or did not answer in time.
        """
        begun = time.monotonic()
        until = until or threading.Event()
        while not until.is_set() and not self.client.is_ready():
            elapsed = time.monotonic() - begun
            if self._guard.poll() is not None:
                self.fail("the engine ended before it answered")
            if elapsed > limit_seconds:
                self.fail(
                    f"the engine did not answer within {limit_seconds:.0f} s",
                    hint="look into the log; --timeout SECONDS waits longer",
                )
            last = "".join(read_tail(self.log, 1))
            observer.tell(f"starting the engine on {what}, {elapsed:.0f} s: {last[:100]}")
            until.wait(_POLL_SECONDS)

    def await_end(self, until: threading.Event) -> None:
        """Return when it shall end.

        Args:
            until: Set when it shall.

        Raises:
            EngineError: It ended by itself.
        """
        while not until.wait(_POLL_SECONDS):
            if self._guard.poll() is not None:
                self.fail("the engine ended by itself")

    def fail(self, what: str, *, hint: str | None = None, found: str | None = None) -> NoReturn:
        """Raise an error with the end of the log.

        Args:
            what: What is wrong.
            hint: What to do; by default, to read the log.
            found: What the server answered.

        Raises:
            EngineError: Always.
        """
        deadline = time.monotonic() + 2  # a dying engine's last words come a moment later
        while self._guard.poll() is None and found is not None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        code = self._guard.poll()
        seen = [] if found is None else [found]
        if code is not None and code > 128:
            seen.append(f"it was killed by signal {code - 128}: by somebody, or for want of memory")
        elif code is not None:
            seen.append(f"it ended with exit code {code}")
        if cause := read_cause(self.log):
            seen.append(f"it said: {cause}")
        error = EngineError(
            what,
            where=str(self.log),
            expected="an engine that loads the checkpoint and answers",
            found="; ".join(seen) or "it is running and says nothing",
            hint=hint or f"less {shlex.quote(str(self.log))}",
        )
        error.log = read_tail(self.log)
        raise error

    def close(self, *, is_log_of_use: bool = False) -> None:
        """End it and everything it started.

        Args:
            is_log_of_use: Its log stays, to be read; else the guard removes it, as it does where
                nobody is left to tell it to.
        """
        self.client.close()
        pipe = self._guard.stdin
        if pipe is not None and is_log_of_use:
            with suppress(OSError):
                pipe.write(guard.KEEP)
                pipe.flush()
        guard.dismiss(self._guard)
        shutil.rmtree(self.scratch, ignore_errors=True)  # where the guard could not


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    *,
    what: str,
    limit_seconds: float,
    answer_seconds: float,
    observer: Observer,
    api_key: str | None = None,
    until: threading.Event | None = None,
) -> Iterator[Server]:
    """A server that is ready, for as long as the block lasts.

    Its log is kept where something went wrong, and removed otherwise.

    Args:
        command: Its words.
        environment: All of its environment.
        url: Where it will answer.
        what: What it serves, for progress.
        limit_seconds: How long it may take to be ready.
        answer_seconds: How long a request may take.
        observer: Is told how it goes.
        api_key: The key that it asks for.
        until: Once set, it is not awaited any longer, and may not be ready.

    Raises:
        EngineError: It could not be started, ended, or did not answer in time.
    """
    descriptor, name = tempfile.mkstemp(prefix="glmquant-engine-", suffix=".log")
    os.close(descriptor)
    server = Server(command, environment, url, Path(name), answer_seconds, api_key)
    is_log_of_use = False
    try:
        server.await_ready(what, limit_seconds, observer, until)
        yield server
    except EngineError:
        is_log_of_use = True
        raise
    finally:
        server.close(is_log_of_use=is_log_of_use)
        if not is_log_of_use:
            server.log.unlink(missing_ok=True)  # where the guard could not
