"""Which version, profile and addresses are meant."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from typing import Final

from glmquant.deploy.data import EngineData, Profile, Target, Version, load_profile, serve_dir
from glmquant.deploy.script import Addresses
from glmquant.errors import UsageError

_ADDRESS: Final = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:-]*[A-Za-z0-9:])?")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SERVED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def choose_version(engine: EngineData, named: str | None) -> Version:
    """The version that is meant: ``0.23``, ``0.23.0`` and ``v0.23.0`` are one.

    Args:
        engine: Of which engine.
        named: What the user typed; None for the default.

    Raises:
        UsageError: None of the known ones.
    """
    wanted = (named or engine.default).lower().removeprefix("v")
    for version in engine.versions:
        if wanted in (version.series, version.exact):
            return version
    known = ", ".join(f"{each.series} ({each.exact})" for each in engine.versions)
    raise UsageError(
        f"no such version of {engine.title} is known",
        where=f"--version {named}",
        expected=known,
        found=wanted,
        hint=f"--version {engine.default}",
    )


def profile_names() -> list[str]:
    """The profiles that there are."""
    return sorted(path.stem for path in (serve_dir() / "profiles").glob("*.yaml"))


def choose_profile(name: str, target_name: str) -> Profile:
    """A profile that has a target.

    Args:
        name: Its name.
        target_name: Where it is to run.

    Raises:
        UsageError: It is not for these machines.
    """
    profile = load_profile(name)
    if target_name in profile.targets:
        return profile
    others = [each for each in profile_names() if target_name in load_profile(each).targets]
    raise UsageError(
        "the profile is not for these machines",
        where=f"--profile {name} --machine {target_name}",
        expected=f"for {target_name}: {', '.join(others)}",
        found=f"{name} is for {', '.join(profile.targets)}",
        hint=f"--profile {others[0]}",
    )


def choose_addresses(target: Target, hosts: Sequence[str], interface: str | None) -> Addresses:
    """Where the machines are.

    Args:
        target: Which machines.
        hosts: Their addresses, in the order of the target's nodes; none leaves them open.
        interface: The network interface that they talk over.

    Raises:
        UsageError: Too many or too few, or no addresses; an interface that nothing goes over.
    """
    names = [
        f"{'node' if role_name == 'serve' else role_name}{number}"
        for role_name, role in target.roles.items()
        for number in range(role.nodes)
    ]
    if hosts and (target.nodes == 1 or len(hosts) != len(names)):
        wanted = f"one for each of {', '.join(names)}" if target.nodes > 1 else "none: one machine"
        raise UsageError(
            "that many addresses are not wanted",
            where="--node",
            expected=wanted,
            found=", ".join(hosts),
            hint=" ".join(f"--node {name.upper()}" for name in names) or None,
        )
    for host in hosts:
        try:
            ipaddress.IPv4Address(host)
        except ValueError:  # noqa: PERF203
            raise UsageError(
                "a machine is named by its address: HCCL takes no name",
                where="--node",
                expected="an IPv4 address",
                found=repr(host),
                hint=f"getent ahostsv4 {shlex.quote(host)}",
            ) from None
    if interface is not None and target.nodes == 1:
        raise UsageError(
            "one machine talks to no other",
            where=f"--nic {interface}",
            expected="several machines",
            found=target.title,
            hint="leave --nic out",
        )
    if interface is not None:
        require_word("--nic", interface, _INTERFACE, "the name of a network interface")
    return Addresses(dict(zip(names, hosts, strict=False)), interface)


def require_name(option: str, name: str) -> None:
    """Refuse a name that a URL or a shell would take apart.

    Raises:
        UsageError: It has other letters.
    """
    require_word(option, name, _SERVED, "letters, digits and . _ - /")


def require_host(host: str) -> None:
    """Refuse what is no address.

    Raises:
        UsageError: It is none.
    """
    require_word("--host", host, _ADDRESS, "an IP address or a host's name")


def require_word(where: str, word: str, form: re.Pattern[str], expected: str) -> None:
    """Refuse a word that has not a form.

    Raises:
        UsageError: It has another.
    """
    if not form.fullmatch(word):
        raise UsageError("that cannot be meant", where=where, expected=expected, found=repr(word))
