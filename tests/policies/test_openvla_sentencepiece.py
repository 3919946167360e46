"""A tokenizer.model alone gives the prompts that its policy was trained on, and a damaged one ends in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from wmpo_ray.core.errors import UserError
from wmpo_ray.policies.openvla.prompt import TOKENIZER_MODEL, PromptTokenizer

# Trained by sentencepiece 0.2.3 on this project's documents (byte pairs, byte fallback, no normalisation, 420 pieces).
MODEL = Path(__file__).parent / "sentencepiece.model"
PROMPT_IDS = [
    *(367, 76, 374, 399, 367, 90, 376, 271, 260, 307, 321, 266, 376, 290, 361, 267, 273, 362, 372, 369, 277, 371, 359),
    *(326, 285, 379, 370, 376, 267, 291, 378, 372, 366, 305, 369, 372, 267, 291, 304, 368, 285, 372, 366, 317, 66, 13),
    *(82, 379, 369, 399),
]


def prompts(content: bytes, vocab_size: int = 512, empty_token_id: int | None = 399) -> PromptTokenizer:
    tokenizer = PromptTokenizer.of({TOKENIZER_MODEL: content}, vocab_size, empty_token_id)
    assert tokenizer is not None
    return tokenizer


def test_a_folder_with_this_file_alone_reads_prompts():
    assert prompts(MODEL.read_bytes()).ids("Push the block into the BLUE pocket") == [1, *PROMPT_IDS]
    assert prompts(MODEL.read_bytes()).ids("pull")[-1] == 399
    with pytest.raises(UserError, match=r"tokenizer.model gives id 399"):
        prompts(MODEL.read_bytes(), 390, None).ids("push the block")


@pytest.mark.parametrize("content", [b"", b"not a model at all", MODEL.read_bytes()[:-3]])
def test_a_damaged_model_is_named(content):
    with pytest.raises(UserError, match=r"tokenizer.model is damaged"):
        prompts(content)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"wmpo-ray\[openvla\], or put the tokenizer.json"):
        prompts(MODEL.read_bytes())
