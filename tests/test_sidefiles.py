from __future__ import annotations

import pytest

from glmquant.sidefiles import side_files

KEPT = [
    "LICENSE",
    "LICENSE.txt",
    "added_tokens.json",
    "assets/README.md",
    "assets/figure.svg",
    "chat_template.jinja",
    "configuration.json",
    "configuration_glm4.py",
    "generation_config.json",
    "merges.txt",
    "original/config.json",
    "readme_assets.png",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "weights.json",
]
LEFT = [
    "README",
    "README.md",
    "README_zh.md",
    "ReadMe.rst",
    "SHA256SUMS",
    "assets/checksums.txt",
    "config.json",
    "glmquant_manifest.json",
    "md5sum.txt",
    "md5sums.txt",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "model.safetensors.sha256",
    "onnx/model.ONNX",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "quant_model_weights.safetensors.index.json",
    "sub/model.safetensors",
    "weights.GGUF",
    "weights.tar.gz",
]


def test_of_a_whole_folder_the_side_files_go_along_in_their_order() -> None:
    assert side_files(sorted(KEPT + LEFT)) == tuple(KEPT)
    assert side_files(reversed(KEPT)) == tuple(reversed(KEPT))


@pytest.mark.parametrize("name", LEFT)
def test_weights_indexes_config_checksums_and_the_readme_stay_behind(name: str) -> None:
    assert side_files([name, "tokenizer.json"]) == ("tokenizer.json",)


def test_an_empty_folder_has_no_side_files() -> None:
    assert side_files([]) == ()
