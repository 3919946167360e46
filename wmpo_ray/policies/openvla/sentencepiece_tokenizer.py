"""Llama's tokenizer.model (sentencepiece) without the sentencepiece package.

The file is a protobuf message (https://github.com/google/sentencepiece, src/sentencepiece_model.proto): a list of pieces
with scores, and how text is normalised. Of these the byte-pair models with byte fallback and no normalisation, which is
what Llama's are, become a tokenizer of the tokenizers package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE

from wmpo_ray.core.errors import UserError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Fields of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK = 3, 35
CHARACTER_MAP, ADD_PREFIX, REMOVE_SPACES = 2, 3, 4
BYTE_PAIRS = 2
NORMAL, UNKNOWN = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_PIECES, MAX_PIECE_CHARACTERS = 2**20, 256
MAX_VARINT_BYTES = 10

Value = int | bytes


def sentencepiece_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer of a tokenizer.model, without special tokens around a text. Raises UserError for other models."""
    try:
        message = list(_fields(content))
        pieces = [_piece(value) for number, value in message if number == PIECES and isinstance(value, bytes)]
        trainer, normalizer = (_last(message, number) for number in (TRAINER, NORMALIZER))
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{where} is damaged: it is no sentencepiece model ({error})") from error
    if trainer.get(MODEL_TYPE) != BYTE_PAIRS or not trainer.get(BYTE_FALLBACK):
        raise UserError(f"{where} is no byte-pair model with byte fallback, as Llama's is; {_advice()}")
    if normalizer.get(CHARACTER_MAP) or normalizer.get(REMOVE_SPACES, 1) or not normalizer.get(ADD_PREFIX, 1):
        raise UserError(f"{where} normalises text, which Llama's does not; {_advice()}")
    return _byte_pair_tokenizer(pieces, where)


def _advice() -> str:
    return "have transformers make a tokenizer.json of it and put that into the folder"


def _byte_pair_tokenizer(pieces: list[tuple[str, float, int]], where: str) -> Tokenizer:
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    unknown = [text for text, _, kind in pieces if kind == UNKNOWN]
    if not 0 < len(pieces) <= MAX_PIECES or len(vocabulary) != len(pieces) or len(unknown) != 1:
        raise UserError(
            f"{where} is damaged: {len(pieces)} pieces, {len(vocabulary)} different ones, {len(unknown)} unknown token"
        )
    normal = {text: score for text, score, kind in pieces if kind == NORMAL}
    # Sentencepiece joins the two neighbours whose whole has the highest score; pieces of one score in their order.
    ranked = sorted(normal, key=lambda text: (-normal[text], vocabulary[text]))
    merges = [
        (text[:i], text[i:])
        for text in ranked
        for i in range(1, len(text))
        if text[:i] in normal and text[i:] in normal
    ]
    model = BPE(vocab=vocabulary, merges=merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return tokenizer


# -- protobuf ----------------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message; numbers of fixed width as their bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes goes beyond the end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(MAX_VARINT_BYTES):
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("a number of too many bytes")


def _last(message: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    """The fields of the last sub-message of that number: in protobuf the last one counts."""
    found = [value for field, value in message if field == number and isinstance(value, bytes)]
    return dict(_fields(found[-1])) if found else {}


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score, kind = fields.get(PIECE, b""), fields.get(SCORE, bytes(4)), fields.get(TYPE, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError("a piece with a field of another type")
    if len(text) > MAX_PIECE_CHARACTERS:
        raise ValueError(f"a piece of {len(text)} bytes")
    return text.decode(), struct.unpack("<f", score)[0], kind
