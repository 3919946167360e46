"""A small OpenVLA-OFT with random weights and a tokenizer of its own."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.gpu.setups import SMALL_TOWERS, word_tokenizer
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.policies.openvla.prompt import TOKENIZER
from wmpo_ray.policies.openvla.published_files import PREPROCESSOR, STATISTICS
from wmpo_ray.policies.openvla.settings import OpenVLAConfig

WORDS = [
    "in",
    ":",
    "what",
    "action",
    "should",
    "the",
    "robot",
    "take",
    "to",
    "?",
    "out",
    "push",
    "pull",
    "block",
    "slowly",
    "into",
    "blue",
    "pink",
    "pocket",
]
TEXT = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
STATISTICS_OF_TWO_TASKS = {
    "coffee": {"action": {"q01": [-1.0, -2.0, 0.0], "q99": [1.0, 2.0, 1.0], "mask": [True, True, False]}},
    "square": {"action": {"q01": [0.0, 0.0, 0.0], "q99": [1.0, 1.0, 1.0]}},
}
PROCESSOR = {
    "input_sizes": [[3, 28, 28], [3, 28, 28]],
    "tvf_normalize_params": [
        {"inplace": False, "mean": [0.25, 0.5, 0.75], "std": [0.5, 0.25, 0.125]},
        {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    ],
}


def small_config(**changes: Any) -> OpenVLAConfig:
    settings = {
        "text_config": TEXT,
        "timm_overrides": SMALL_TOWERS,
        "image_sizes": [28, 28],
        "num_actions_chunk": 2,
        "action_dim": 3,
        "unnorm_key": "coffee",
        "image_steps": "resize",
    }
    return OpenVLAConfig(**{**settings, **changes})


def tokenizer_json() -> bytes:
    return word_tokenizer(WORDS)


def small_policy(seed: int = 0, **changes: Any) -> OpenVLAOFTPolicy:
    """Weights that are large enough for every input to show in the logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = OpenVLAOFTPolicy(small_config(**changes))
        for parameter in policy.parameters():
            parameter.data.normal_(0, 0.3 if parameter.ndim > 1 else 0.5)
    policy.attach_files(
        {
            TOKENIZER: tokenizer_json(),
            STATISTICS: json.dumps(STATISTICS_OF_TWO_TASKS).encode(),
            PREPROCESSOR: json.dumps(PROCESSOR).encode(),
        }
    )
    return policy.eval()
