"""What each node of a role runs: options from the profile, the checkpoint and its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from glmquant.deploy.candidate import Candidate
from glmquant.deploy.data import EngineData, Placement, Profile, Role, Target, Version
from glmquant.deploy.problems import Problem, room
from glmquant.machines import MACHINES, Layout
from glmquant.sizing import advice, obstacles

NODE0: Final = "$node0_ip"
LOCAL: Final = "$local_ip"
NIC: Final = "$nic"
PORT: Final = "$port"
RANK: Final = "$rank"
DEVICES: Final = "$devices"
SHELL_VARIABLES: Final = (NODE0, LOCAL, NIC, PORT, RANK, DEVICES)
"""Values that a node's own script works out."""

EXPERT_PARALLEL: Final = "--enable-expert-parallel"

_SPECULATIVE: Final = ("speculative_", "draft_")
_GRAPHS: Final = ("capture_sizes", "graph_mode")


class Choices(NamedTuple):
    """What a user may choose; None leaves it to the profile or the checkpoint.

    Attributes:
        host: Where a single node listens.
        port: On which.
        name: Under which the model is asked for.
        context: Tokens of a sequence.
        speculative_tokens: To draft at a step; 0 for none.
        tool_parser: The parser of tool calls.
        expert_parallel: Whole experts on a card in place of slices.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    context: int | None = None
    speculative_tokens: int | None = None
    tool_parser: str | None = None
    expert_parallel: bool | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine runs.

    Attributes:
        name: Of its script: ``serve``, ``node0``, ``prefill1``.
        role: Its part in the target.
        number: Among those of its role, from 0.
        layout: Over how many cards the model lies, on all nodes of the engine.
        ranks: The data-parallel ranks that are processes of their own here; none where vLLM starts
            them itself.
        variables: Environment variable → value, in order.
        options: Flag → value, in order; a value of ``SHELL_VARIABLES`` is worked out by the script.
    """

    name: str
    role: str
    number: int
    layout: Layout
    ranks: range
    variables: dict[str, str]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the nodes of a target, and collects what is to be told.

    Attributes:
        candidate: The checkpoint.
        engine: What is known of the engine.
        version: Which of its versions.
        target_name: Where it is to run.
        target: The same, as data.
        profile: What for.
        choices: What the user chose.
        notes: What is to be known, a sentence each.
        problems: What does not fit.
    """

    candidate: Candidate
    engine: EngineData
    version: Version
    target_name: str
    target: Target
    profile: Profile
    choices: Choices
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def nodes(
        self, role_name: str, role: Role, placement: Placement, base: Mapping[str, Any]
    ) -> Iterator[Node]:
        """What each node of a role runs."""
        layout = self._layout(role, placement)
        values: dict[str, Any] = {
            **base,
            **self.profile.options,
            **placement.options,
            "data_parallel": layout.data_parallel,
            "tensor_parallel": layout.tensor_parallel,
            "expert_parallel": layout.is_expert_parallel,
        }
        values["served_name"] = self.choices.name or values.get("served_name", "glm")
        if values.get("eager"):
            values = {name: each for name, each in values.items() if name not in _GRAPHS}
        if not self.profile.is_verbatim:
            values |= self._parsers()
        elif not self._reads_description():
            values["quantization"] = "ascend"
        values = self._drafting(values)
        values["context"] = self._context(values["context"])
        if self.target.machine != "cpu":
            is_replicated = bool(values.get("shared_expert_dp")) and layout.is_expert_parallel
            found = room(
                self.candidate, layout, values["context"], shared_experts_whole=is_replicated
            )
            self.problems.extend(found)
        for number in range(role.nodes):
            of_node, ranks = self._place(role, number, layout)
            variables, options = self._spell(values | of_node)
            single = self.target.nodes == 1
            prefix = "node" if role_name == "serve" else role_name
            yield Node(
                name="serve" if single else f"{prefix}{number}",
                role=role_name,
                number=number,
                layout=layout,
                ranks=ranks,
                variables=variables,
                options=options,
            )

    def _layout(self, role: Role, placement: Placement) -> Layout:
        """That of the profile, with whole experts where slices of them would not do."""
        data, tensor = placement.data_parallel, placement.tensor_parallel
        if self.engine.name == "sglang":
            data, tensor = 1, data * tensor
        machine = MACHINES.get(self.target.machine, next(iter(MACHINES.values())))
        chosen = self.choices.expert_parallel
        wanted = placement.expert_parallel if chosen is None else chosen
        layout = Layout(machine, data, tensor, is_expert_parallel=wanted)
        config = self.candidate.config
        if wanted or chosen is not None or config is None:
            return layout
        by_expert = Layout(machine, data, tensor, is_expert_parallel=True)
        flaws = [*obstacles(config, layout)] or [*advice(config, (), layout)]
        is_mended = not list(obstacles(config, by_expert))
        if not flaws or not is_mended or self.engine.name != "vllm-ascend" or layout.cards < 2:
            return layout
        flaw = flaws[0].partition(":")[0]
        if self.profile.is_verbatim:
            self.notes.append(
                f"{flaw}: --expert-parallel leaves experts whole, and the profile "
                f"{self.profile.name} does not ask for it"
            )
            return layout
        self.notes.append(f"expert parallel, since {flaw}")
        return by_expert

    def _reads_description(self) -> bool:
        """Whether the engine knows the format without the flag."""
        verdict = self.candidate.verdict(self.version.series)
        return self.candidate.is_embedded or (verdict is not None and self.version.series != "0.13")

    def _parsers(self) -> dict[str, Any]:
        """Those of this model that this version has."""
        parsers = self.engine.parsers
        series = self.version.series
        reasoning = next((each for each in parsers.reasoning if each.covers(series)), None)
        values: dict[str, Any] = {"reasoning_parser": reasoning.name} if reasoning else {}
        chosen = self.choices.tool_parser
        if chosen is None:
            form = self.candidate.tool_form
            if form is None:
                self.notes.append(
                    "whether this is GLM-4.7 cannot be told: tool calls are read as 4.5 and 4.6 "
                    "write them; --tool-parser names another parser"
                )
            named = parsers.inline if form == "inline" else parsers.lines
            found = next((each for each in named if each.covers(series)), None)
            if found is None:
                first = next((each.since for each in named if each.since), "another version")
                self.notes.append(
                    f"no tool-call parser: {self.engine.title} {self.version.exact} has none for "
                    f"this model, {first} has"
                )
                return values
            chosen = found.name
        return values | {"auto_tool_choice": True, "tool_parser": chosen}

    def _drafting(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the tokens that were chosen, or without drafting where nothing can draft."""
        candidate, chosen = self.candidate, self.choices.speculative_tokens
        if chosen is not None:
            values = values | {"speculative_tokens": chosen}
        tokens = values.get("speculative_tokens", 0)
        if tokens and not candidate.has_mtp:
            found = (
                "the weights hold an MTP layer, and config.json announces none"
                if candidate.mtp_count
                else "the checkpoint has no MTP layer"
            )
            self.notes.append(f"no speculative decoding: {found}; glmquant add-mtp brings one")
            tokens = 0
        if not tokens:
            return {k: each for k, each in values.items() if not k.startswith(_SPECULATIVE)}
        if self.profile.is_verbatim:
            values = values | {"draft_model": str(candidate.folder)}
        return values | {"draft_tokens": tokens + 1}

    def _context(self, wanted: int) -> int:
        """What was chosen, or the profile's, at most what the model takes."""
        allowed, chosen = self.candidate.model_context, self.choices.context
        if chosen is not None:
            if allowed is not None and chosen > allowed:
                self.problems.append(
                    Problem(
                        "the model takes no sequences of that length",
                        where=f"--context {chosen}",
                        expected=f"at most {allowed} (max_position_embeddings)",
                        found=str(chosen),
                        hint=f"--context {allowed}",
                    )
                )
            return chosen
        if allowed is not None and wanted > allowed:
            self.notes.append(f"--max-model-len {allowed}, all that the model takes, for {wanted}")
            return allowed
        return wanted

    def _place(self, role: Role, number: int, layout: Layout) -> tuple[dict[str, Any], range]:
        """What is the node's own, and its ranks where they are processes."""
        target = self.target
        if target.nodes == 1:
            return {"host": self.choices.host, "port": self.choices.port}, range(0)
        network: dict[str, Any] = {
            "hccl_address": LOCAL,
            "hccl_interface": NIC,
            "gloo_interface": NIC,
            "tensorpipe_interface": NIC,
        }
        if role.kv_role is None:
            listens = {"host": self.choices.host, "port": self.choices.port} if number == 0 else {}
            values = network | {
                **listens,
                "headless": number > 0,
                "data_parallel_local": layout.data_parallel // role.nodes,
                "data_parallel_start": number * (layout.data_parallel // role.nodes),
                "data_parallel_address": NODE0,
                "data_parallel_port": target.rpc_port,
            }
            return values, range(0)
        local = layout.data_parallel if role.is_apart else layout.data_parallel // role.nodes
        first = 0 if role.is_apart else number * local
        values = network | {
            "host": "0.0.0.0",
            "port": PORT,
            "visible_devices": DEVICES,
            "data_parallel_rank": RANK,
            "data_parallel_address": LOCAL if role.is_apart else NODE0,
            "data_parallel_port": role.rpc_port,
            "kv_connector": "MooncakeConnectorV1",
            "kv_role": role.kv_role,
            "kv_port": role.kv_ports[number],
            "kv_layouts": self._kv_layouts(),
        }
        return values, range(first, first + local)

    def _kv_layouts(self) -> dict[str, Any]:
        placements = self.profile.targets[self.target_name]
        return {
            name: {"dp_size": each.data_parallel, "tp_size": each.tensor_parallel}
            for name, each in placements.items()
        }

    def _spell(self, values: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
        """Variables and flags as this version calls them; what it does not know is left out."""
        variables: dict[str, str] = {}
        options: dict[str, Any] = {}
        for name in self.engine.options:
            spelling = self.engine.spelling(name, self.version.series)
            value = values.get(name)
            if spelling is None or value is None:
                continue
            if spelling.variable is not None:
                is_switch = isinstance(value, bool)
                word = spelling.on if value else spelling.off
                variables[spelling.variable] = word if is_switch else str(value)
            elif spelling.flag is not None and spelling.key is None:
                if value is not False:
                    options[spelling.flag] = value
            elif spelling.flag is not None and spelling.key is not None:
                place = options.setdefault(spelling.flag, {})
                *above, last = spelling.key.split(".")
                for key in above:
                    place = place.setdefault(key, {})
                place[last] = value
        return variables, options


def reached(host: str) -> str:
    """Where a server that listens at a host is asked from this machine."""
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"[{here}]" if ":" in here and not here.startswith("[") else here
