"""From what a user names to a service: data, defaults, and the CPU engine's own settings."""

from __future__ import annotations

from dataclasses import replace

from glmquant.deploy.candidate import Candidate
from glmquant.deploy.choose import (
    choose_profile,
    choose_version,
    require_host,
    require_name,
)
from glmquant.deploy.container import Image
from glmquant.deploy.data import load_container, load_engine, load_targets
from glmquant.deploy.nodes import Choices
from glmquant.deploy.setup import Setup, make_setup
from glmquant.errors import UsageError
from glmquant.machines import MACHINES
from glmquant.runtime.hosts import count_npus
from glmquant.runtime.serving import cpu_backend


def request_setup(
    candidate: Candidate,
    engine_name: str,
    series: str | None,
    target_name: str | None,
    profile_name: str,
    choices: Choices,
) -> Setup:
    """The service that is meant.

    Args:
        candidate: The checkpoint.
        engine_name: ``vllm-ascend`` or ``sglang``.
        series: Its version; None for the stable one.
        target_name: Where; None for the machine that runs this.
        profile_name: What for.
        choices: What the user chose.

    Raises:
        UsageError: No such version, no such machine for that profile or engine, or no CPU engine.
    """
    require_host(choices.host)
    if choices.name is not None:
        require_name("--name", choices.name)
    if choices.tool_parser is not None:
        require_name("--tool-parser", choices.tool_parser)
    target_name = target_name or _this_machine()
    engine = load_engine(engine_name)
    targets = load_targets()
    if engine.name == "sglang" and target_name not in MACHINES:
        raise UsageError(
            "SGLang's command is known for one machine alone",
            where=f"--engine sglang --machine {target_name}",
            expected=", ".join(MACHINES),
            found=target_name,
            hint="--machine a3",
        )
    profile = choose_profile(profile_name, target_name)
    if engine.name == "sglang" and profile.is_verbatim:
        raise UsageError(
            "the tutorial is vllm-ascend's",
            where=f"--engine sglang --profile {profile.name}",
            expected="another profile",
            found=profile.name,
            hint="--profile throughput",
        )
    if target_name != "cpu":
        version = choose_version(engine, series)
        setup = make_setup(candidate, engine, version, targets, target_name, profile, choices)
        if series is None:
            note = f"{engine.title} {version.exact}, the default; --version names another"
            setup = replace(setup, notes=(note, *setup.notes))
        return setup
    return _on_cpu(candidate, series, profile_name, choices)


def _on_cpu(candidate: Candidate, series: str | None, profile_name: str, choices: Choices) -> Setup:
    from glmquant.verify.behaviour.choice import require_cpu_engine

    profile = choose_profile(profile_name, "cpu")
    engine = load_engine("vllm-ascend")
    wanted = choose_version(engine, series) if series is not None else None
    found = require_cpu_engine(
        candidate.nbytes, "--machine cpu", "--machine a3 prints the command for NPUs"
    )
    backend = cpu_backend(found)
    exact = found.versions["vllm-ascend"]
    version = next(each for each in engine.versions if each.exact == exact)
    if wanted not in (None, version):
        raise UsageError(
            "the CPU engine has another version",
            where=f"--version {series}",
            expected=exact,
            found=wanted.exact,
            hint="leave --version out",
        )
    engine = engine.model_copy(update={"program": (backend.program, "serve")})
    setup = make_setup(candidate, engine, version, load_targets(), "cpu", profile, choices)
    (node,) = setup.nodes
    return replace(setup, nodes=(replace(node, variables=backend.environment | node.variables),))


def _this_machine() -> str:
    """The machine by its NPUs.

    Raises:
        UsageError: It has none, or another number.
    """
    npus = count_npus()
    for machine in MACHINES.values():
        if machine.cards == npus:
            return machine.key
    raise UsageError(
        "for which machine?",
        where="--machine",
        expected="8 NPUs of an Atlas 800 A2 in /dev, 16 of an A3, or a name after --machine",
        found=f"{npus} NPUs",
        hint="--machine a3",
    )


def no_container() -> UsageError:
    """The error for the CPU engine in a container."""
    return UsageError(
        "the CPU engine runs in no container",
        where="--machine cpu",
        expected="a machine with NPUs",
        found="--docker or --compose",
        hint="leave it out, or name --machine a3",
    )


def image_of(setup: Setup, *, is_mirrored: bool) -> Image:
    """The container's image for a service.

    Args:
        setup: The service.
        is_mirrored: By the mirror that the tutorial names.

    Raises:
        UsageError: There is none for this machine.
    """
    machine = setup.target.machine
    if machine == "cpu":
        raise no_container()
    host = load_container()
    name = setup.version.images[machine]
    return Image(f"{host.mirror}{name}" if is_mirrored else name, host)
