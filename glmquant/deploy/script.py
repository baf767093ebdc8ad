"""A node's commands as text for a shell: by themselves, or in a container."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from glmquant import __version__
from glmquant.deploy.container import Image, run_lines
from glmquant.deploy.nodes import DEVICES, EXPERT_PARALLEL, LOCAL, NODE0, SHELL_VARIABLES, Node
from glmquant.deploy.setup import Setup

NOT_RUN: Final = "not run on NPUs"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the machines are, as far as that is known.

    Attributes:
        hosts: Node → address.
        interface: The network interface that they talk over; None lets the scripts find it.
    """

    hosts: dict[str, str]
    interface: str | None = None


def quoted(word: str) -> str:
    """A word for a shell; a variable of the script stays one."""
    return f'"{word}"' if word in SHELL_VARIABLES else shlex.quote(word)


def render(
    setup: Setup, node: Node, image: Image | None, addresses: Addresses, *, is_file: bool
) -> str:
    """The text of a node's script.

    Args:
        setup: The service.
        node: Which of its nodes.
        image: The container's; None runs the engine itself.
        addresses: Where the machines are.
        is_file: It is to be run as a file, not pasted into a shell.
    """
    lines = list(_head(setup, node, is_file=is_file or setup.target.nodes > 1))
    if setup.target.nodes > 1:
        lines += _preamble(setup, node, addresses)
    if node.ranks:
        lines += _loop(setup, node, image)
    else:
        command = list(_command(setup, node, image))
        replaces = "exec " if is_file or setup.target.nodes > 1 else ""
        lines += [*_exports(setup, node, image), replaces + command[0], *command[1:]]
    return "\n".join(lines) + "\n"


def render_proxy(setup: Setup, image: Image | None, addresses: Addresses) -> str:
    """The script of the proxy that stands before prefill and decode nodes.

    Args:
        setup: The service.
        image: The container's, which holds the proxy; None runs it itself.
        addresses: Where the machines are.
    """
    lines = list(_head(setup, None, is_file=True))
    hosts: dict[str, list[str]] = {}
    ports: dict[str, list[str]] = {}
    for node in setup.nodes:
        name = f"{node.name.upper()}_IP"
        lines.append(_address(node.name, name, addresses))
        first = setup.target.roles[node.role].first_port or 0
        hosts.setdefault(node.role, []).extend(f'"${node.name}_ip"' for _ in node.ranks)
        ports.setdefault(node.role, []).extend(str(first + i) for i in range(len(node.ranks)))
    container = f"docker run --rm --name glm-proxy --net=host {image.name} " if image else ""
    lines += [
        "unset http_proxy https_proxy",
        f"exec {container}python3 {setup.engine.proxy} \\",
        f"  --host {shlex.quote(setup.choices.host)} \\",
        f"  --port {setup.choices.port} \\",
        f"  --prefiller-hosts {' '.join(hosts['prefill'])} \\",
        f"  --prefiller-ports {' '.join(ports['prefill'])} \\",
        f"  --decoder-hosts {' '.join(hosts['decode'])} \\",
        f"  --decoder-ports {' '.join(ports['decode'])}",
    ]
    return "\n".join(lines) + "\n"


def _head(setup: Setup, node: Node | None, *, is_file: bool) -> Iterator[str]:
    if is_file:
        yield "#!/usr/bin/env bash"
    part = "" if setup.target.nodes == 1 else f", {node.name if node else 'proxy'}"
    yield f"# {_comment(setup.title)}{part}"
    tried = f"; {NOT_RUN}" if setup.target.machine != "cpu" else ""
    yield f"# by glmquant {__version__}{tried}"
    if is_file:
        yield "set -euo pipefail"


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _address(name: str, variable: str, addresses: Addresses) -> str:
    """A line that takes an address from the environment, or that which is known."""
    known = addresses.hosts.get(name)
    other = f"-{known}" if known else f"?the address of {name}"
    return f"{name}_ip=${{{variable}:{other}}}"


def _preamble(setup: Setup, node: Node, addresses: Addresses) -> Iterator[str]:
    """What a node has to know of itself and of the first of its engine."""
    role = setup.target.roles[node.role]
    prefix = node.name.rstrip("0123456789")
    head = f"{prefix}0"
    if role.is_apart or node.number == 0:
        head = node.name
    yield _address(head, f"{head.upper()}_IP", addresses)
    if head != "node0" and NODE0 in node.options.values():
        yield f"node0_ip=${head}_ip"
    known = addresses.hosts.get(node.name)
    if head == node.name:
        yield f"local_ip=${head}_ip"
    elif known:
        yield f"local_ip=${{LOCAL_IP:-{known}}}"
    else:
        route = "ip -o route get \"$node0_ip\" | sed -n 's/.* src \\([^ ]*\\).*/\\1/p'"
        yield f"local_ip=${{LOCAL_IP:-$({route})}}"
    if addresses.interface:
        yield f"nic=${{NIC:-{addresses.interface}}}"
    else:
        find = f"{{ ip -o addr show to \"{LOCAL}\" || true; }} | awk '{{ print $2; exit }}'"
        yield f"nic=${{NIC:-$({find})}}"
    yield f': "${{nic:?no interface has the address {LOCAL}; set NIC}}"'
    if setup.target.may_lack_expert_parallel and EXPERT_PARALLEL in node.options:
        yield f"# EXPERT_PARALLEL=0 leaves {EXPERT_PARALLEL} out: {setup.target.caution}."
        yield f"expert_parallel=({EXPERT_PARALLEL})"
        yield '[ "${EXPERT_PARALLEL:-1}" = 1 ] || expert_parallel=()'


def _exports(setup: Setup, node: Node, image: Image | None) -> Iterator[str]:
    """The environment of all processes; a container has it in its command."""
    if image is None:
        for name, value in node.variables.items():
            if value != DEVICES:
                yield f"export {name}={quoted(value)}"
        if node.ranks and setup.engine.mooncake is not None:
            yield f"export LD_LIBRARY_PATH={setup.engine.mooncake}:${{LD_LIBRARY_PATH:-}}"


def _loop(setup: Setup, node: Node, image: Image | None) -> Iterator[str]:
    """A process for each data-parallel rank of this node; the end of one is the end of all."""
    role = setup.target.roles[node.role]
    cards = node.layout.tensor_parallel
    yield from _exports(setup, node, image)
    yield "pids=()"
    yield 'end() { trap - EXIT; kill "${pids[@]}" 2>/dev/null || true; wait; }'
    yield "trap end EXIT"
    yield "trap 'exit 130' INT"
    yield "trap 'exit 143' TERM"
    yield f"for ((local_rank = 0; local_rank < {len(node.ranks)}; local_rank++)); do"
    yield f"  rank=$(({node.ranks.start} + local_rank))"
    yield f"  port=$(({role.first_port} + local_rank))"
    yield f"  devices=$(seq -s, $((local_rank * {cards})) $((local_rank * {cards} + {cards - 1})))"
    for name, value in node.variables.items():
        if value == DEVICES and image is None:
            yield f"  export {name}={quoted(value)}"
    *first, last = _command(setup, node, image)
    yield from (f"  {line}" for line in first)
    yield f"  {last} &"
    yield "  pids+=($!)"
    yield "done"
    yield "wait -n"


def _command(setup: Setup, node: Node, image: Image | None) -> Iterator[str]:
    """The command, a flag a line, with backslashes between."""
    groups = list(_groups(setup, node))
    if image is not None:
        groups = [*run_lines(setup, node, image), *groups]
    lines = [" ".join(group) for group in groups]
    for number, line in enumerate(lines):
        indent = "" if number == 0 else "  "
        yield indent + line + (" \\" if number < len(lines) - 1 else "")


def _groups(setup: Setup, node: Node) -> Iterator[list[str]]:
    """The words of the engine's command by line: the program, then each flag with its value."""
    group: list[str] = []
    may_lack = setup.target.may_lack_expert_parallel
    for word in setup.words(node):
        if word in node.options:
            yield group
            group = []
        is_switch = may_lack and word == EXPERT_PARALLEL
        group.append('"${expert_parallel[@]}"' if is_switch else quoted(word))
    yield group
