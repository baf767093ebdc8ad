"""A service run here: refused where it cannot work, awaited, watched, ended with all it began."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from types import FrameType

from glmquant.deploy.problems import Problem, refuse
from glmquant.deploy.setup import Setup
from glmquant.errors import DeployError, UsageError
from glmquant.machines import MACHINES
from glmquant.observer import Observer
from glmquant.runtime.connection import ANSWER_SECONDS
from glmquant.runtime.hosts import count_npus
from glmquant.runtime.launch import key_here
from glmquant.runtime.server import running


def run(
    setup: Setup,
    *,
    limit_seconds: float,
    observer: Observer,
    ready: Callable[[str, str], None],
) -> None:
    """Run a service until SIGTERM or Ctrl-C.

    Args:
        setup: The service.
        limit_seconds: How long the engine may take to be ready.
        observer: Is told how it goes meanwhile.
        ready: Is told the address and the log's path once the engine has answered.

    Raises:
        UsageError: It is for several machines.
        DeployError: It does not fit this machine, or the port is taken.
        EngineError: The engine could not be started, was not ready in time, or ended.
        KeyboardInterrupt: Ctrl-C.
    """
    if setup.target.nodes > 1:
        raise UsageError(
            "--run is for one machine",
            where=f"--machine {setup.target_name}",
            expected="a2, a3 or cpu",
            found=setup.target.title,
            hint="-o FOLDER writes a script for each machine, to be run there",
        )
    refuse((*setup.problems, *machine_problems(setup)))
    _require_free(setup.choices.host, setup.choices.port)
    (node,) = setup.nodes
    with (
        _terminated() as asked,
        running(
            setup.words(node),
            os.environ | node.variables,
            setup.url,
            what=setup.candidate.name,
            limit_seconds=limit_seconds,
            answer_seconds=ANSWER_SECONDS,
            observer=observer,
            api_key=key_here(),
            until=asked,
        ) as server,
    ):
        if asked.is_set():
            return
        found = server.client.model.name
        if found != setup.served_name:
            server.fail("another model answers", found=f"{setup.url} serves {found}")
        ready(setup.url, str(server.log))
        server.await_end(asked)


def machine_problems(setup: Setup) -> Iterator[Problem]:
    """What this machine lacks to run a service.

    Args:
        setup: The service, of one machine.
    """
    if setup.target.machine == "cpu":
        return
    program, cards = setup.engine.program[0], MACHINES[setup.target.machine].cards
    found = count_npus()
    if found != cards:
        yield Problem(
            "this is another machine",
            where=f"--machine {setup.target_name}",
            expected=f"{cards} NPUs in /dev",
            found=str(found),
            hint="run it there; --docker prints the container's command",
        )
    if shutil.which(program) is None:
        yield Problem(
            f"the command {program} is not here",
            where="PATH",
            expected=f"{setup.engine.title} {setup.version.exact}",
            found="no such command",
            hint="run it in the container of --docker",
        )
    try:
        installed = installed_version(setup.engine.name)
    except PackageNotFoundError:
        return  # in another environment than ours
    if ".".join(installed.split(".")[:2]) != setup.version.series:
        yield Problem(
            f"another version of {setup.engine.title} is installed here",
            where=f"--version {setup.version.series}",
            expected=setup.version.exact,
            found=installed,
            hint=f"--version {'.'.join(installed.split('.')[:2])}",
        )


def _require_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        DeployError: It is taken, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise DeployError(
            "the server could not listen there",
            where=f"{host}:{port}",
            expected="a port of this machine that nobody listens on",
            found=error.strerror or str(error),
            hint=f"ss -ltnp 'sport = :{port}' says who does; --port takes another",
        ) from error


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, for as long as the block lasts."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
