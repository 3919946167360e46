"""Instructions as token ids, with the tokenizer of the policy's own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from wmpo_ray.core.errors import UserError, short
from wmpo_ray.core.untrusted import parse_json

TOKENIZER, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
BOS = 1
PROMPT = "In: What action should the robot take to {}?\nOut:"


class PromptTokenizer:
    """Prompts as the published policies were trained on them.

    Ids must be below `vocab_size`. `empty_token_id` (a lone space in Llama's vocabulary) ends every prompt of training;
    None, or an id beyond the vocabulary, leaves it out. `source` is the file that errors name.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], vocab_size: int, empty_token_id: int | None, source: str = TOKENIZER
    ):
        self._encode, self._source = encode, source
        self._vocab_size = vocab_size
        self._end = empty_token_id if empty_token_id is not None and empty_token_id < vocab_size else None
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, files: Mapping[str, bytes], vocab_size: int, empty_token_id: int | None) -> PromptTokenizer | None:
        """From the tokenizer.json or else the tokenizer.model among a folder's files; None where there is neither.

        Raises UserError for one that is damaged, and for a tokenizer.model without the sentencepiece package.
        """
        if TOKENIZER in files:
            return cls(json_encoder(files[TOKENIZER]), vocab_size, empty_token_id)
        if TOKENIZER_MODEL in files:
            return cls(_of_sentencepiece(files[TOKENIZER_MODEL]), vocab_size, empty_token_id, TOKENIZER_MODEL)
        return None

    def ids(self, instruction: str) -> list[int]:
        """BOS, prompt and the empty token. Raises UserError for a prompt with an id beyond the vocabulary."""
        if instruction not in self._known:
            ids = self._encode(PROMPT.format(instruction.lower()))
            if ids[:1] != [BOS]:
                ids = [BOS, *ids]
            if self._end is not None and ids[-1] != self._end:
                ids.append(self._end)
            if max(ids) >= self._vocab_size:
                raise UserError(
                    f"{self._source} gives id {max(ids)} and the policy's vocabulary has {self._vocab_size}: the two "
                    "are not from the same folder"
                )
            self._known[instruction] = ids
        return self._known[instruction]

    def batch(self, instructions: Sequence[str], pad_token_id: int) -> tuple[Tensor, Tensor | None]:
        """Left-padded ids [B, L] int64 and their mask [B, L] bool, None where nothing is padded."""
        rows = [self.ids(instruction) for instruction in instructions]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[pad_token_id] * (longest - len(row)) + row for row in rows])
        if all(len(row) == longest for row in rows):
            return ids, None
        return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]).bool()


def json_encoder(content: bytes) -> Callable[[str], list[int]]:
    """Text -> ids by a tokenizer.json. Raises UserError for one that is damaged."""
    parse_json(content, TOKENIZER)
    try:
        tokenizer = Tokenizer.from_str(content.decode())
        tokenizer.encode("put it down")  # some damage shows only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
        raise UserError(f"{TOKENIZER} is damaged: {short(error)}") from error
    # Limits for other uses may be stored in the file.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: list(tokenizer.encode(text).ids)


def _of_sentencepiece(content: bytes) -> Callable[[str], list[int]]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UserError(
            f"{TOKENIZER_MODEL} is read with the sentencepiece package: install wmpo-ray[openvla], or put the {TOKENIZER} "
            "of the same model beside it"
        ) from None
    if not content:  # of which the library makes a model without any pieces
        raise UserError(f"{TOKENIZER_MODEL} is damaged: it is empty")
    try:
        return SentencePieceProcessor(model_proto=content).encode
    except (RuntimeError, OSError) as error:
        raise UserError(f"{TOKENIZER_MODEL} is damaged: {str(error).splitlines()[0]}") from error
