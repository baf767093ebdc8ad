"""GLM-4-nano as it ships: whole, in GLM-4.6's layout, and as good as its card says."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "glmquant" / "demo" / "GLM-4-nano"
HELDOUT = ROOT / "glmquant" / "demo" / "heldout"
LAYERS = 4
EXPERTS = 8
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def read_json(file: Path) -> Any:
    """A JSON file's content."""
    return json.loads(file.read_text(encoding="utf-8"))


def header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    with file.open("rb") as stream:
        (nbytes,) = struct.unpack("<Q", stream.read(8))
        content: dict[str, Any] = json.loads(stream.read(nbytes))
    return content


def all_tensors() -> dict[str, dict[str, Any]]:
    """Header entries of every tensor of the folder, by name."""
    tensors: dict[str, dict[str, Any]] = {}
    for file in MODEL.glob("*.safetensors"):
        content = header(file)
        del content["__metadata__"]
        tensors.update(content)
    return tensors


def router_bias(layer: int) -> list[float]:
    """The correction bias of one layer's router, ``[8]`` F32, read from the file's bytes."""
    name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
    file = MODEL / read_json(MODEL / "model.safetensors.index.json")["weight_map"][name]
    data = file.read_bytes()
    base = 8 + struct.unpack("<Q", data[:8])[0]
    start, end = header(file)[name]["data_offsets"]
    return list(struct.unpack(f"<{EXPERTS}f", data[base + start : base + end]))


def measured() -> dict[str, Any]:
    """The card's figures."""
    _, front, _ = (MODEL / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    figures: dict[str, Any] = yaml.safe_load(front)["measured"]
    return figures


def render(messages: list[dict[str, Any]], **values: Any) -> str:
    """The chat template, rendered in the sandbox that transformers uses."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = (MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(messages=messages, **values)


def expected_shapes() -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of every tensor, written down without the code that made them."""
    shapes: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("BF16", [2048, 256]),
        "model.norm.weight": ("BF16", [256]),
        "lm_head.weight": ("BF16", [2048, 256]),
    }
    for layer in range(LAYERS + 1):
        inside: dict[str, list[int]] = {
            "input_layernorm.weight": [256],
            "post_attention_layernorm.weight": [256],
            "self_attn.q_proj.weight": [256, 256],
            "self_attn.k_proj.weight": [128, 256],
            "self_attn.v_proj.weight": [128, 256],
            "self_attn.o_proj.weight": [256, 256],
            "self_attn.q_proj.bias": [256],
            "self_attn.k_proj.bias": [128],
            "self_attn.v_proj.bias": [128],
            "self_attn.q_norm.weight": [64],
            "self_attn.k_norm.weight": [64],
        }
        mlps = {"mlp": 512}
        if layer > 0:
            mlps = {f"mlp.experts.{expert}": 96 for expert in range(EXPERTS)}
            mlps["mlp.shared_experts"] = 96
            inside["mlp.gate.weight"] = [EXPERTS, 256]
            inside["mlp.gate.e_score_correction_bias"] = [EXPERTS]
        for mlp, inner in mlps.items():
            for projection in PROJECTIONS:
                down = projection == "down_proj"
                inside[f"{mlp}.{projection}.weight"] = [256, inner] if down else [inner, 256]
        if layer == LAYERS:
            inside["eh_proj.weight"] = [256, 512]
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                inside[f"{norm}.weight"] = [256]
        for name, shape in inside.items():
            dtype = "F32" if name.endswith("e_score_correction_bias") else "BF16"
            shapes[f"model.layers.{layer}.{name}"] = (dtype, shape)
    return shapes


def test_every_file_has_the_digest_in_sha256sums() -> None:
    lines = (MODEL / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in MODEL.iterdir()
        if file.name != "SHA256SUMS"
    }
    assert found == sums


def test_model_and_heldout_text_stay_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 12_000_000
    assert (HELDOUT / "stdlib.txt").stat().st_size <= 200_000


def test_every_tensor_of_glm_4_6_is_there_with_its_dtype_and_shape_and_no_other() -> None:
    found = {name: (entry["dtype"], entry["shape"]) for name, entry in all_tensors().items()}
    assert found == expected_shapes()


def test_index_names_each_tensors_file_and_the_sum_of_their_bytes() -> None:
    index = read_json(MODEL / "model.safetensors.index.json")
    nbytes = 0
    for file in sorted(set(index["weight_map"].values())):
        content = header(MODEL / file)
        assert content.pop("__metadata__") == {"format": "pt"}
        assert set(content) == {name for name, at in index["weight_map"].items() if at == file}
        nbytes += sum(end - start for start, end in (e["data_offsets"] for e in content.values()))
    assert index["metadata"] == {"total_size": nbytes}
    assert set(index["weight_map"].values()) == {f.name for f in MODEL.glob("*.safetensors")}


def test_the_mtp_layer_is_alone_in_its_file_and_the_rest_in_four_shards_or_more() -> None:
    weight_map = read_json(MODEL / "model.safetensors.index.json")["weight_map"]
    mtp = {name for name in weight_map if name.startswith(f"model.layers.{LAYERS}.")}
    assert {name for name, file in weight_map.items() if file == "mtp.safetensors"} == mtp
    numbered = sorted(file.name for file in MODEL.glob("model-*.safetensors"))
    count = len(numbered)
    assert count >= 4
    assert numbered == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
def test_training_has_moved_the_router_biases_of_each_moe_layer(layer: int) -> None:
    bias = router_bias(layer)
    assert all(math.isfinite(value) and value != 0 for value in bias)
    assert max(bias) - min(bias) > 0.01


def test_config_names_the_architecture_and_the_tokens_that_exist() -> None:
    config = read_json(MODEL / "config.json")
    assert config["architectures"] == ["Glm4MoeForCausalLM"]
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (LAYERS, 1)
    added = {t["content"]: t["id"] for t in read_json(MODEL / "tokenizer.json")["added_tokens"]}
    ends = [added[text] for text in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    assert config["eos_token_id"] == ends
    assert read_json(MODEL / "generation_config.json")["eos_token_id"] == ends
    first = config["vocab_size"] - len(added)
    assert sorted(added.values()) == list(range(first, config["vocab_size"]))


def test_template_renders_a_tool_its_call_and_its_answer() -> None:
    text = render(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Oslo?"}]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Ask.",
                "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}},
                    {"function": {"name": "weather", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "rain"},
            {"role": "tool", "content": "sun"},
        ],
        tools=[WEATHER],
        add_generation_prompt=True,
    )
    assert text.startswith("[gMASK]<sop><|system|>\n# Tools\n")
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>\n" in text
    assert text.endswith(
        "<|system|>\nBe short.<|user|>\nOslo?<|assistant|>\n<think>Ask.</think>\n"
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value></tool_call>\n"
        "<tool_call>weather\n</tool_call>"
        "<|observation|>\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nsun\n</tool_response><|assistant|>"
    )


def test_template_with_thinking_off_says_so_and_closes_the_thoughts() -> None:
    text = render(
        [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "<think>long</think>\nYes."},
            {"role": "user", "content": "Two?"},
        ],
        enable_thinking=False,
        add_generation_prompt=True,
    )
    assert text == (
        "[gMASK]<sop><|user|>\nOne?/nothink<|assistant|>\n<think></think>\nYes."
        "<|user|>\nTwo?/nothink<|assistant|>\n<think></think>"
    )


def test_template_with_thinking_on_leaves_the_thoughts_to_the_model() -> None:
    text = render([{"role": "user", "content": "One?"}], add_generation_prompt=True)
    assert text == "[gMASK]<sop><|user|>\nOne?<|assistant|>"


def test_card_figures_satisfy_the_bounds() -> None:
    figures = measured()
    assert figures["heldout_perplexity"] <= figures["unigram_perplexity"] / 15
    assert figures["mtp_acceptance"] >= 0.5


def test_no_file_names_a_path_of_the_machine_that_made_it() -> None:
    texts = [f for f in MODEL.iterdir() if f.suffix != ".safetensors"] + [HELDOUT / "LICENSE.txt"]
    for file in texts:
        if file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w<])/(home|root|work|tmp|opt)/", text), file.name


@pytest.mark.torch
def test_transformers_loads_every_weight_and_finds_the_perplexity_of_the_card() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    mtp = f"model.layers.{LAYERS}."
    assert all(name.startswith(mtp) for name in report["unexpected_keys"])

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer((HELDOUT / "stdlib.txt").read_text(encoding="utf-8"))["input_ids"]
    prefix = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    windows = torch.tensor([prefix + ids[i * 254 : (i + 1) * 254] for i in range(64)])
    losses = []
    with torch.no_grad():
        for rows in torch.chunk(windows, 4):
            logits = model(rows).logits[:, 1:-1].flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, rows[:, 2:].flatten()).item())
    perplexity = math.exp(sum(losses) / len(losses))
    assert perplexity == pytest.approx(measured()["heldout_perplexity_64_windows"], rel=5e-3)


@pytest.mark.torch
def test_transformers_renders_the_chat_template_as_the_sandbox_here_does() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "user", "content": "Grüße <b>"}]
    for values in ({"enable_thinking": False}, {"tools": [WEATHER]}):
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **values
        )
        assert text == render(messages, add_generation_prompt=True, **values)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.torch
def test_the_tool_finds_the_mtp_acceptance_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    evaluate = importlib.import_module("nano.evaluate")
    export = importlib.import_module("nano.export")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    text = (HELDOUT / "stdlib.txt").read_text(encoding="utf-8")
    windows = evaluate.heldout_windows(tokenizer, text)[: evaluate.PART_WINDOWS]
    scores = evaluate.score(export.read_checkpoint(MODEL), windows)
    figures = measured()
    assert scores.tokens == figures["part_tokens"]
    assert scores.mtp_acceptance == pytest.approx(figures["mtp_acceptance_64_windows"], abs=2e-3)
    assert scores.perplexity == pytest.approx(figures["heldout_perplexity_64_windows"], rel=5e-3)
