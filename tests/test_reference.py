"""The reference model against transformers, and against loops that do one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmquant.demo import model_dir
from glmquant.runtime.observed import Drafting, Prompt
from tests.builders import Recorded, build_checkpoint
from tests.modelslim import Style, make

torch = pytest.importorskip("torch")

from glmquant.runtime.reference import Precision, Reference, divergence  # noqa: E402
from glmquant.runtime.reference.linears import (  # noqa: E402
    DynamicLinear,
    StaticLinear,
    int_mm_is_exact,
    int_sums,
    quantize_tokens,
)
from glmquant.runtime.reference.settings import read_settings  # noqa: E402
from glmquant.runtime.reference.weights import Weights  # noqa: E402
from glmquant.source import FolderSource  # noqa: E402
from glmquant.survey import survey  # noqa: E402

pytestmark = pytest.mark.torch

GROUPED: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def texts(vocabulary: int, *lengths: int) -> list[tuple[int, ...]]:
    """Random ones."""
    generator = np.random.default_rng(0)
    return [tuple(generator.integers(0, vocabulary, length).tolist()) for length in lengths]


def prompts(vocabulary: int, *lengths: int) -> list[Prompt]:
    """Random ones."""
    return [Prompt(str(at), text) for at, text in enumerate(texts(vocabulary, *lengths))]


def transformers_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def checkpoint(folder: Path, name: str) -> Path:
    """GLM-4-nano, or a random one in the layout of a release."""
    if name == "nano":
        return model_dir()
    if name == "grouped":
        return build_checkpoint(folder / name, "4.6", **GROUPED, norm_topk_prob=False).folder
    return build_checkpoint(folder / name, name).folder


@pytest.mark.parametrize("name", ["nano", "4.5", "4.5-air", "4.7", "grouped"])
def test_in_f32_it_agrees_with_transformers(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path, name)
    reference = Reference(folder, Precision.FLOAT32)
    model = transformers_model(folder)
    windows = texts(reference.config.vocab_size, 40, 7, 23)
    for window, found in zip(windows, reference.prompt_logprobs(windows), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0]
        expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(window[1:]).unsqueeze(1))
        np.testing.assert_allclose(found, expected[:, 0].numpy(), atol=2e-4)


def test_the_greedy_continuation_is_that_of_transformers() -> None:
    folder = model_dir()
    reference = Reference(folder, Precision.FLOAT32)
    asked = prompts(reference.config.vocab_size, 12, 31)
    answers, drafting = reference.continue_greedily(asked, 12)
    model = transformers_model(folder)
    assert drafting is None
    for prompt, answer in zip(asked, answers, strict=True):
        tokens = list(prompt.tokens)
        for token, gap in zip(answer.tokens, answer.gaps, strict=True):
            with torch.no_grad():
                logprobs = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            best = logprobs.topk(2)
            assert token == int(best.indices[0])
            assert gap == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-3)
            tokens.append(token)


class PlainDrafter:
    """Drafts token by token, all of the sequence anew each time, with transformers' layer."""

    def __init__(self, folder: Path) -> None:
        glm = pytest.importorskip("transformers.models.glm4_moe.modeling_glm4_moe")
        source = FolderSource(folder)
        found = survey(source)
        config = read_settings(found.config)
        held = Weights(source, found, Precision.FLOAT32)
        at = f"model.layers.{config.num_hidden_layers}."
        tensors = {
            name.removeprefix(at): held.read(name, ref.shape).float()
            for name, ref in held._tensors.items()
            if name.startswith(at)
        }
        self.target = transformers_model(folder)
        self.layer = glm.Glm4MoeDecoderLayer(self.target.config, config.num_hidden_layers).eval()
        experts = [f"mlp.experts.{each}." for each in range(config.n_routed_experts)]
        state = {name: each for name, each in tensors.items() if not name.startswith("mlp.exp")}
        state["mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat([tensors[e + f"{n}_proj.weight"] for n in ("gate", "up")]) for e in experts]
        )
        state["mlp.experts.down_proj"] = torch.stack(
            [tensors[e + "down_proj.weight"] for e in experts]
        )
        left = self.layer.load_state_dict(state, strict=False)
        assert not left.missing_keys
        self.tensors = tensors

    def norm(self, x: Any, name: str) -> Any:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return x * self.tensors[f"{name}.weight"]

    def outputs(self, tokens: Sequence[int], hidden: Any) -> Any:
        """``[n, hidden]`` of the MTP layer for the tokens that follow on hidden states."""
        model = self.target.model
        embedding = self.tensors.get("embed_tokens.weight", model.embed_tokens.weight)
        embedded = embedding[torch.tensor(tokens)].clone()
        embedded[0] = 0
        both = torch.cat([self.norm(embedded, "enorm"), self.norm(hidden, "hnorm")], -1)
        x = (both @ self.tensors["eh_proj.weight"].T)[None]
        n = x.shape[1]
        positions = torch.arange(n)[None]
        made = self.layer(
            x,
            attention_mask=torch.full((n, n), float("-inf")).triu(1)[None, None],
            position_ids=positions,
            position_embeddings=model.rotary_emb(x, positions),
        )
        return (made[0] if isinstance(made, tuple) else made).view(n, -1)

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """What follows on ``tokens``, of which the target has not seen the last."""
        head = self.tensors.get("shared_head.head.weight", self.target.lm_head.weight)
        hidden = self.target.model(torch.tensor([tokens[:-1]])).last_hidden_state[0]
        following = list(tokens[1:])
        drafted = []
        for _ in range(count):
            made = self.outputs(following, hidden)[-1:]
            drafted.append(int((self.norm(made, "shared_head.norm") @ head.T).argmax()))
            hidden = torch.cat([hidden, made])
            following.append(drafted[-1])
        return drafted


@pytest.mark.parametrize(("name", "count"), [("nano", 1), ("nano", 3), ("4.5", 2)])
def test_drafts_are_those_of_a_loop_that_makes_one_after_the_other(
    tmp_path: Path, name: str, count: int
) -> None:
    folder = checkpoint(tmp_path, name)
    reference = Reference(folder, Precision.FLOAT32)
    asked = prompts(reference.config.vocab_size, 9, 20, 1)
    most = 14
    longer, _ = reference.continue_greedily(asked, most + count)
    answers, found = reference.continue_greedily(asked, most, count)
    assert [a.tokens for a in answers] == [a.tokens[:most] for a in longer]
    drafter = PlainDrafter(folder)
    steps, by_position = 0, [0] * count
    with torch.no_grad():
        for prompt, answer in zip(asked, longer, strict=True):
            done = 1
            while done < most:
                steps += 1
                drafted = drafter.draft([*prompt.tokens, *answer.tokens[:done]], count)
                pairs = zip(drafted, answer.tokens[done:], strict=False)
                agreed = next((at for at, (a, b) in enumerate(pairs) if a != b), count)
                for at in range(agreed):
                    by_position[at] += 1
                done += agreed + 1
    assert found == Drafting(steps, steps * count, sum(by_position), tuple(by_position))


def test_without_drafts_for_one_token_nothing_is_counted() -> None:
    reference = Reference(model_dir())
    _, drafting = reference.continue_greedily(prompts(100, 5), 1, 2)
    assert drafting == Drafting(0, 0, 0, (0, 0))


@pytest.mark.parametrize("has_int_mm", [False, True])
@pytest.mark.parametrize(("tokens", "inputs"), [(1, 8), (5, 1024), (17, 5120), (3, 1030)])
def test_int8_sums_are_exact(has_int_mm: bool, tokens: int, inputs: int) -> None:
    if has_int_mm and not int_mm_is_exact():
        pytest.skip("torch's own product is not exact on this machine")
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (tokens, inputs), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (24, inputs), dtype=torch.int8, generator=generator)
    x[0], weight[0], weight[1] = -128, -127, 127
    assert torch.equal(int_sums(x, weight, has_int_mm).long(), x.long() @ weight.long().T)


def test_a_dynamic_linear_is_the_formula() -> None:
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.standard_normal((6, 40), np.float32)).to(torch.bfloat16)
    x[2] = 0
    weight = torch.from_numpy(generator.integers(-127, 128, (9, 40)).astype(np.int8))
    scale = torch.rand(9).to(torch.bfloat16).float()
    bias = torch.rand(9).to(torch.bfloat16)
    wide = x.float().numpy()
    s = np.abs(wide).max(1, keepdims=True) / np.float32(127)
    q = np.rint(wide / np.maximum(s, np.float32(1e-12))).astype(np.int64)
    sums = (q @ weight.numpy().astype(np.int64).T).astype(np.float32)
    expected = sums * scale.numpy() * s + bias.float().numpy()
    found = DynamicLinear(weight, scale, bias, has_int_mm=False)(x)
    assert torch.equal(found, torch.from_numpy(expected).to(torch.bfloat16))
    assert quantize_tokens(x)[0][2].tolist() == [0] * 40


def tensor_of(made: Recorded, name: str) -> Any:
    dtype, shape, data = made.tensors[name]
    if dtype == "BF16":
        wide = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    kinds = {"I8": np.int8, "I32": np.int32, "F32": np.float32}
    return np.frombuffer(data, kinds[dtype]).reshape(shape)


def as_bf16(values: Any) -> Any:
    return torch.tensor(values).to(torch.bfloat16).float().numpy()


def test_a_static_linear_is_read_and_calculated_as_the_engine_does(nano: Recorded) -> None:
    made = make(nano, nano.folder.parent / "static", Style(static=True))
    source = FolderSource(made.folder)
    held = Weights(source, survey(source), Precision.BFLOAT16)
    name = "model.layers.1.self_attn.q_proj"
    q, scale, offset, bias, deq = (
        tensor_of(made, f"{name}.{suffix}")
        for suffix in ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
    )
    linear = held.linear(name, q.shape[1], q.shape[0], has_bias=True)
    assert isinstance(linear, StaticLinear)
    x = torch.randn(5, q.shape[1], generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    reciprocal = as_bf16(1 / as_bf16(np.float32(scale)))
    steps = np.rint(x.float().numpy() * reciprocal + np.float32(offset))
    sums = np.clip(steps, -128, 127).astype(np.int64) @ q.astype(np.int64).T + bias
    expected = torch.from_numpy(sums.astype(np.float32) * deq).to(torch.bfloat16)
    assert torch.equal(linear(x), expected)


@pytest.mark.parametrize("style", [Style(layout="hf"), Style(widen=False)])
def test_the_layouts_of_other_tools_run_alike(nano: Recorded, style: Style) -> None:
    v1 = make(nano, nano.folder.parent / "v1").folder
    other = make(nano, nano.folder.parent / "other", style).folder
    windows = texts(64, 30, 12)
    found = divergence(Reference(v1), Reference(other), windows)
    assert (found.kl == 0).all() and found.same_top.all() and len(found.kl) == 40


@pytest.mark.parametrize(
    "style", [Style(), Style(layout="v0"), Style(static=True), Style(mtp="int8")]
)
def test_a_quantized_checkpoint_is_near_its_source(nano: Recorded, style: Style) -> None:
    made = make(nano, nano.folder.parent / "made", replace(style, arithmetic="f32"))
    windows = texts(64, 50, 20)
    found = divergence(Reference(nano.folder), Reference(made.folder), windows)
    assert 0 < found.kl.mean() < 0.01
    _, drafting = Reference(made.folder).continue_greedily(prompts(64, 8), 6, 1)
    assert drafting is not None and drafting.drafts


def test_the_divergence_is_the_sum_over_the_whole_vocabulary() -> None:
    windows = texts(2048, 12, 5)
    base, other = Reference(model_dir()), Reference(model_dir(), Precision.FLOAT32)
    found = divergence(base, other, windows)
    nll = -np.concatenate(other.prompt_logprobs(windows))
    np.testing.assert_allclose(found.nll, nll, atol=1e-5)
    np.testing.assert_allclose(
        found.base_nll, -np.concatenate(base.prompt_logprobs(windows)), atol=1e-5
    )
    assert (found.kl >= 0).all() and 0 < found.kl.mean() < 0.01
    assert (divergence(base, base, windows).kl == 0).all()


def test_two_runs_give_the_same() -> None:
    first, second = (
        Reference(model_dir()).continue_greedily(prompts(2048, 11, 3), 9, 2) for _ in range(2)
    )
    assert first == second
