"""A small random vision-language model of a real class, as transformers writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "yes",
    "no",
    "Yes",
    "No",
    "task",
    "finished",
    "pocket",
    "blue",
    "pink",
]


def write_vlm(folder: Path, seed: int = 0) -> Path:
    """LLaVA with one layer of language and one of vision, for pictures of 16 x 16 pixels in four patches."""
    torch.manual_seed(seed)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special, additional_special_tokens=["<image>"])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **sizes),
            text_config=LlamaConfig(
                vocab_size=len(WORDS),
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.5,
                **sizes,
            ),
            image_token_index=WORDS.index("<image>"),
            vision_feature_layer=-1,
            image_seq_length=4,
        )
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    network.save_pretrained(folder)
    LlavaProcessor(pictures, tokenizer, patch_size=8, **strategy).save_pretrained(folder)
    return folder
