"""Checkpoint, machine, version and profile together: a service, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from glmquant.deploy.candidate import Candidate
from glmquant.deploy.data import EngineData, Profile, Target, Targets, Version, series_key
from glmquant.deploy.nodes import Choices, Maker, Node, reached
from glmquant.deploy.problems import Problem, config_problems, verdict_problems
from glmquant.errors import UsageError
from glmquant.runtime.launch import command_words


@dataclass(frozen=True, slots=True)
class Setup:
    """A service: what each node runs.

    Attributes:
        engine: Of which engine.
        version: Of which version.
        target_name: Where: ``a3``.
        target: The same, as data.
        profile: For what.
        candidate: The checkpoint.
        choices: What the user chose.
        nodes: What each machine runs.
        notes: What is to be known of it, a sentence each.
        problems: What does not fit, or will fail.
    """

    engine: EngineData
    version: Version
    target_name: str
    target: Target
    profile: Profile
    candidate: Candidate
    choices: Choices
    nodes: tuple[Node, ...]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def title(self) -> str:
        """In a line."""
        return (
            f"{self.candidate.name} on {self.target.title}: {self.engine.title} "
            f"{self.version.exact}, profile {self.profile.name}"
        )

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return str(self.nodes[0].options["--served-model-name"])

    @property
    def url(self) -> str:
        """Where a service of one machine is asked from that machine."""
        return f"http://{reached(self.choices.host)}:{self.choices.port}"

    def with_problems(self, problems: Iterable[Problem]) -> Setup:
        """The same with more that does not fit."""
        return replace(self, problems=(*self.problems, *problems))

    def require_one_machine(self, option: str) -> None:
        """Refuse several machines.

        Raises:
            UsageError: There are several.
        """
        if self.target.nodes > 1:
            raise UsageError(
                f"{option} is for one machine",
                where=f"--machine {self.target_name}",
                expected="a2 or a3",
                found=self.target.title,
                hint="-o FOLDER writes a script for each machine, with --docker or without",
            )

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "engine": self.engine.name,
            "version": self.version.exact,
            "machine": self.target_name,
            "profile": self.profile.name,
            "folder": str(self.candidate.folder),
            "nodes": [
                {
                    "name": node.name,
                    "layout": node.layout.name,
                    "ranks": list(node.ranks),
                    "environment": node.variables,
                    "command": self.words(node),
                }
                for node in self.nodes
            ],
            "notes": list(self.notes),
            "problems": [problem.fields() for problem in self.problems],
        }

    def words(self, node: Node) -> list[str]:
        """The command of a node."""
        return command_words(self.engine.program, str(self.candidate.folder), node.options)


def make_setup(
    candidate: Candidate,
    engine: EngineData,
    version: Version,
    targets: Targets,
    target_name: str,
    profile: Profile,
    choices: Choices,
) -> Setup:
    """Put a service together; what does not fit is told and not refused.

    Args:
        candidate: The checkpoint.
        engine: What is known of the engine.
        version: Which of its versions.
        targets: All targets.
        target_name: Where it is to run; one that the profile has.
        profile: What for.
        choices: What the user chose.
    """
    target = targets.targets[target_name]
    base = {"vllm-ascend": targets.common, "sglang": targets.sglang}[engine.name]
    if target.machine == "cpu":
        base = targets.cpu
    maker = Maker(candidate, engine, version, target_name, target, profile, choices)
    nodes: list[Node] = []
    for role_name, role in target.roles.items():
        placement = profile.targets[target_name][role_name]
        nodes += maker.nodes(role_name, role, placement, {} if profile.is_verbatim else base)
    notes, problems = maker.notes, [*config_problems(candidate), *maker.problems]
    if target.caution:
        notes.append(target.caution)
    if target.since and series_key(version.series) < series_key(target.since):
        problems.append(
            Problem(
                "this version has no instructions for these machines",
                where=f"--version {version.series}",
                expected=f"{target.since} or later",
                found=version.exact,
                hint="take a later --version",
            )
        )
    if engine.name == "vllm-ascend":
        has_flag = any("--quantization" in node.options for node in nodes)
        drafts = any("--speculative-config" in node.options for node in nodes)
        problems += verdict_problems(candidate, version, has_flag=has_flag, drafts=drafts)
    return Setup(
        engine=engine,
        version=version,
        target_name=target_name,
        target=target,
        profile=profile,
        candidate=candidate,
        choices=choices,
        nodes=tuple(nodes),
        notes=tuple(dict.fromkeys(notes)),
        problems=tuple(dict.fromkeys(problems)),
    )
