"""What the genuine parsers say of a command: run by the engine's own Python, JSON in and out.

``python engine_judge.py words``: vLLM's ``vllm serve`` parser and its configuration classes.
``python engine_judge.py additional [ROOT]``: vllm-ascend's configuration class, of the engine or of
the version that lies unpacked in ROOT; which keys it does not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import types
from typing import Any
from unittest.mock import MagicMock


class Recording(dict[str, Any]):
    """A mapping that notes which of its keys are asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


class Anything(types.ModuleType):
    """A module whose functions say no, except that sequence parallelism is on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: name == "enable_sp"


def judge_words(words: list[str]) -> dict[str, Any]:
    """What ``vllm serve`` makes of a command."""
    from vllm.config import SpeculativeConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parser = make_arg_parser(FlexibleArgumentParser())
            found = parser.parse_args(words)
            validate_parsed_serve_args(found)
    except SystemExit:
        return {"error": told.getvalue()[-2000:]}
    except (TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    AsyncEngineArgs.from_cli_args(found)
    if found.tool_call_parser:
        ToolParserManager.get_tool_parser(found.tool_call_parser)
    if found.reasoning_parser:
        ReasoningParserManager.get_reasoning_parser(found.reasoning_parser)
    fields = {field.name for field in dataclasses.fields(SpeculativeConfig)}
    drafts = found.speculative_config or {}
    return {
        "model": found.model_tag,
        "unknown": sorted(set(drafts) - fields),
        "values": {
            name: value
            for name, value in vars(found).items()
            if isinstance(value, (str, int, float, bool))
        },
        "graph_mode": str(found.compilation_config.cudagraph_mode),
        "capture_sizes": found.compilation_config.cudagraph_capture_sizes,
        "kv_role": found.kv_transfer_config.kv_role if found.kv_transfer_config else None,
        "additional": found.additional_config,
    }


def vllm_config(additional: dict[str, Any]) -> Any:
    """As much of vLLM's configuration as the class asks for."""
    config = MagicMock()
    config.additional_config = additional
    for name in ("data", "prefill_context", "pipeline", "decode_context"):
        setattr(config.parallel_config, f"{name}_parallel_size", 1)
    config.parallel_config.tensor_parallel_size = 8
    config.scheduler_config.max_num_batched_tokens = 8192
    config.scheduler_config.max_num_seqs = 16
    config.kv_transfer_config = config.speculative_config = None
    return config


def judge_additional(content: dict[str, Any], root: str | None) -> dict[str, Any]:
    """Which keys of ``--additional-config`` the class does not read, or why it refuses them."""
    import vllm_ascend.ascend_config as module

    if root is None:
        # What needs an NPU comes behind the check of the keys.
        module.AscendConfig.derive_and_validate = lambda *_: None
        module._ASCEND_CONFIG = None
        try:
            made = module.init_ascend_config(vllm_config(content))
        except (TypeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"[:500]}
        return {"unread": [], "made": str(made)}
    asked = {name: Recording(each) for name, each in content.items() if isinstance(each, dict)}
    whole = Recording(content | asked)
    made = module.AscendConfig(vllm_config(whole))
    unread = sorted(set(whole) - whole.asked)
    fusion = getattr(made, "ascend_fusion_config", None)
    for name, each in asked.items():
        if name == "ascend_fusion_config":  # taken by ** where the version knows it
            each.asked |= set(vars(fusion)) if fusion else set()
        unread += [f"{name}.{key}" for key in sorted(set(each) - each.asked)]
    return {"unread": unread}


def main() -> None:
    kind, *more = sys.argv[1:]
    cases = json.load(sys.stdin)
    output = sys.stdout
    sys.stdout = sys.stderr  # the engines print as they are imported
    if kind == "words":
        answers = [judge_words(words) for words in cases]
    else:
        root = more[0] if more else None
        if root is not None:
            package = types.ModuleType("vllm_ascend")
            package.__path__ = [f"{root}/vllm_ascend"]
            invariant = "vllm.model_executor.layers.batch_invariant"  # gone in 0.30, asked by 0.18
            for name in ("vllm_ascend.utils", invariant):
                sys.modules[name] = Anything(name)
            sys.modules["vllm_ascend"] = package
        answers = [judge_additional(content, root) for content in cases]
    json.dump(answers, output)


if __name__ == "__main__":
    main()
