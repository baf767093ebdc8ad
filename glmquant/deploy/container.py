"""A service in a container: the words of ``docker run``, and a compose file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from glmquant import __version__
from glmquant.deploy.data import Container
from glmquant.deploy.nodes import RANK, SHELL_VARIABLES, Node, reached
from glmquant.deploy.problems import Problem
from glmquant.deploy.setup import Setup
from glmquant.machines import MACHINES
from glmquant.runtime.launch import KEY_VARIABLE

HEALTH: Final = "import urllib.request as r; r.urlopen('http://{host}:{port}/health', timeout=5)"
"""The images have Python, and not all have curl."""


@dataclass(frozen=True, slots=True)
class Image:
    """A container's image, and what it needs.

    Attributes:
        name: With its tag.
        host: What it needs of the host.
    """

    name: str
    host: Container


def image_problems(setup: Setup) -> Iterator[Problem]:
    """Folders that a container cannot be given."""
    for folder in folders(setup):
        if ":" in str(folder):
            yield Problem(
                "a container cannot mount a folder with a colon in its name",
                where=str(folder),
                expected="a name without colons",
                found=folder.name,
                hint="rename it, or run the engine without a container",
            )


def folders(setup: Setup) -> tuple[Path, ...]:
    """What is mounted of the checkpoint: itself, and where its links lead to."""
    return (setup.candidate.folder, *setup.candidate.link_folders)


def devices(setup: Setup, host: Container) -> list[str]:
    """The cards of a machine and what drives them."""
    cards = MACHINES[setup.target.machine].cards
    return [*(f"{host.card_device}{number}" for number in range(cards)), *host.devices]


def mounts(setup: Setup, host: Container) -> list[str]:
    """The driver's files, and the weights, which are only read."""
    driver = [f"{path}:{path}" for path in host.mounts]
    return [*driver, *(f"{folder}:{folder}:ro" for folder in folders(setup))]


def shell(setup: Setup, node: Node) -> list[str]:
    """The words before the engine's command in the container."""
    words = list(setup.engine.container_shell)
    if node.ranks and setup.engine.mooncake is not None:
        library = f"export LD_LIBRARY_PATH={setup.engine.mooncake}:$LD_LIBRARY_PATH; "
        words = [library + word if word.startswith("exec") else word for word in words]
    return words


def run_lines(setup: Setup, node: Node, image: Image) -> Iterator[list[str]]:
    """``docker run`` up to the engine's command, a line an option, quoted.

    Args:
        setup: The service.
        node: Which of its nodes.
        image: The image.
    """
    name = f"glm-{node.name}" if setup.target.nodes > 1 else "glm"
    yield ["docker", "run", "--rm"]
    yield ["--name", f'{name}-"{RANK}"' if node.ranks else name]
    yield ["--net=host", f"--shm-size={image.host.shm_size}"]
    for device in devices(setup, image.host):
        yield ["--device", device]
    for mount in mounts(setup, image.host):
        yield ["-v", shlex.quote(mount)]
    for variable, value in node.variables.items():
        word = f'"{value}"' if value in SHELL_VARIABLES else shlex.quote(value)
        yield ["--env", f"{variable}={word}"]
    if not node.ranks:
        yield [
            "--env",
            KEY_VARIABLE,
        ]  # by its name alone: passed on where it is set
    yield [image.name]
    yield [shlex.quote(word) for word in shell(setup, node)]


def compose(setup: Setup, image: Image) -> str:
    """A compose file of a service on one machine.

    Args:
        setup: The service.
        image: The image.
    """
    (node,) = setup.nodes
    port = setup.choices.port
    ready_seconds = int(node.variables.get("VLLM_ENGINE_READY_TIMEOUT_S", 3600))
    service: dict[str, Any] = {
        "image": image.name,
        "container_name": "glm",
        "network_mode": "host",
        "shm_size": image.host.shm_size,
        "devices": [f"{device}:{device}" for device in devices(setup, image.host)],
        "volumes": [_plain(mount) for mount in mounts(setup, image.host)],
        "environment": {
            **{name: _plain(value) for name, value in node.variables.items()},
            KEY_VARIABLE: None,  # passed on where it is set
        },
        "command": [_plain(word) for word in [*shell(setup, node), *setup.words(node)]],
        "healthcheck": {
            "test": [
                "CMD",
                "python3",
                "-c",
                HEALTH.format(host=reached(setup.choices.host), port=port),
            ],
            "interval": "30s",
            "timeout": "10s",
            "retries": 3,
            "start_period": f"{ready_seconds}s",
        },
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
    }
    text = yaml.safe_dump({"services": {"glm": service}}, sort_keys=False, width=1_000_000)
    head = "".join(letter if letter.isprintable() else "?" for letter in setup.title)
    return f"# {head}\n# by glmquant {__version__}; not run on NPUs\n{text}"


def _plain(text: str) -> str:
    """A text in which compose finds no variable."""
    return text.replace("$", "$$")
