"""A tokenizer.model gives the ids that sentencepiece itself gives, and a hostile one ends in a line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from wmpo_ray.core.errors import UserError
from wmpo_ray.policies.openvla.prompt import PROMPT, TOKENIZER_MODEL, PromptTokenizer
from wmpo_ray.policies.openvla.sentencepiece_tokenizer import sentencepiece_tokenizer

# Trained by sentencepiece 0.2.3 on this project's documents (byte pairs, byte fallback, no normalisation, 420 pieces);
# the ids are those of its own encoder.
MODEL = Path(__file__).parent / "sentencepiece.model"
PROMPT_IDS = [
    *(367, 76, 374, 399, 367, 90, 376, 271, 260, 307, 321, 266, 376, 290, 361, 267, 273, 362, 372, 369, 277, 371, 359),
    *(326, 285, 379, 370, 376, 267, 291, 378, 372, 366, 305, 369, 372, 267, 291, 304, 368, 285, 372, 366, 317, 66, 13),
    *(82, 379, 369, 399),
]


def message(*fields: tuple[int, object]) -> bytes:
    """A protobuf message: integers as numbers, floats in four bytes, bytes as they are."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3) + varint(value)
    return out


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def piece(text: str, score: float = 0.0, kind: int = 1) -> tuple[int, bytes]:
    return 1, message((1, text.encode()), (2, score), (3, kind))


PIECES = (piece("<unk>", kind=2), piece("<s>", kind=3), piece("<0x41>", kind=6), piece("▁"), piece("a"), piece("b"))
TRAINER, NORMALIZER = message((3, 2), (35, 1)), message((1, b"identity"), (3, 1), (4, 0))


def model(*extra: tuple[int, bytes], trainer: bytes = TRAINER, normalizer: bytes = NORMALIZER) -> bytes:
    return message(*PIECES, *extra, (2, trainer), (3, normalizer))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (PROMPT.format("push the block into the blue pocket"), PROMPT_IDS),
        ("  two  spaces", [367, 367, 277, 384, 372, 367, 266, 382, 371, 380, 264]),
        ("été 🤖", [367, 198, 172, 369, 198, 172, 367, 243, 162, 167, 153]),
        ("a", [260]),
        ("", []),
    ],
)
def test_the_ids_are_those_of_sentencepiece(text, ids):
    assert sentencepiece_tokenizer(MODEL.read_bytes(), "model").encode(text).ids == ids


def test_a_folder_with_this_file_alone_reads_prompts():
    prompts = PromptTokenizer.of({TOKENIZER_MODEL: MODEL.read_bytes()}, 512, 399)
    assert prompts.ids("Push the block into the BLUE pocket") == [1, *PROMPT_IDS]
    assert prompts.ids("pull")[-1] == 399
    with pytest.raises(UserError, match=r"tokenizer.model gives id 399"):
        PromptTokenizer.of({TOKENIZER_MODEL: MODEL.read_bytes()}, 390, None).ids("push the block")


def test_the_pair_of_the_highest_score_is_joined_first_and_unknown_bytes_fall_back():
    ranked = model(piece("ab", -1.0), piece("▁a", -2.0), piece("▁ab", -3.0))
    assert sentencepiece_tokenizer(ranked, "m").encode("ab").ids == [8]
    assert sentencepiece_tokenizer(ranked, "m").encode("aab").ids == [7, 6]
    other = model(piece("▁a", -1.0), piece("ab", -2.0))
    assert sentencepiece_tokenizer(other, "m").encode("ab").ids == [6, 5]
    assert sentencepiece_tokenizer(other, "m").encode("A").ids == [3, 2]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no byte-pair model"),
        (model(trainer=message((3, 1), (35, 1))), "no byte-pair model"),
        (model(trainer=message((3, 2))), "byte fallback"),
        (model(normalizer=message((2, b"map"), (4, 0))), "normalises"),
        (model(normalizer=message((1, b"identity"))), "normalises"),
        (model(piece("a")), "6 different ones"),
        (model(piece("<other>", kind=2)), "2 unknown"),
        (model((1, message((1, b"\xff\xfe")))), "no sentencepiece model"),
        (model((1, message((1, b"x" * 300)))), "a piece of 300 bytes"),
        (model((1, message((1, 7)))), "another type"),
        (model() + b"\x0a\xff\xff\xff\xff\x0f", "beyond the end"),
        (model() + b"\xff" * 20, "too many bytes"),
        (model() + b"\x0b", "wire type 3"),
        (b"not a model at all", "damaged"),
        (model()[:-3], "damaged"),
    ],
)
def test_another_model_or_a_damaged_one_is_refused(content, told):
    with pytest.raises(UserError, match=told):
        sentencepiece_tokenizer(content, "tokenizer.model")
