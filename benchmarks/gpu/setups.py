"""The models that are measured, from one configuration for each size: built on the device, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from wmpo_ray.config.loading import load_config
from wmpo_ray.config.run import Config
from wmpo_ray.environments.facts import EnvironmentFacts, environment_facts
from wmpo_ray.planning.blueprints import policy_blueprint, reward_blueprint, world_blueprint
from wmpo_ray.policies.openvla.openvla_kind import PROMPT_LENGTH
from wmpo_ray.policies.openvla.prompt import PROMPT
from wmpo_ray.policies.openvla.published_files import STATISTICS, TOKENIZER
from wmpo_ray.world_models.published_stdit import published_world_model

# Published sizes: the folders are not there, so nothing but their sizes is assumed.
FULL = (
    "environment.kind=mimicgen",
    "environment.task=Coffee_D0",
    "environment.horizon=256",
    "rollout.chunk_length=8",
    "rollout.temperature=1.6",
    "policy.kind=openvla_oft",
    "policy.pretrained=published/policy",
    "policy.openvla.gradient_checkpointing=true",
    "world_model.pretrained=published/world-model",
    "world_model.codec=published/autoencoder",
    "reward.kind=videomae_published",
    "reward.pretrained=published/reward-model",
    "reward.clip_length=8",
    "weights.dtype=bfloat16",
)
SMALL_TOWERS = {
    "featurizer": {"embed_dim": 24, "depth": 3, "num_heads": 3},
    "fused_featurizer": {"embed_dim": 16, "depth": 2, "num_heads": 2},
}
SMALL_OPENVLA = {
    "text_config": {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "timm_overrides": SMALL_TOWERS,
    "image_sizes": [28, 28],
}
SMALL_AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
}
SMALL_REWARD = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "use_mean_pooling": True,
}
INSTRUCTION_WORDS = PROMPT_LENGTH - len(PROMPT.format("").replace(":", " :").replace("?", " ?").split()) - 2


def config_of(size: str, folder: Path, *settings: str) -> Config:
    """`full` or `small`; the sizes of small models are written into `folder`."""
    if size == "full":
        return load_config("demo", [*FULL, "reward.verify.enabled=false", *settings])
    for name, content in (("policy", SMALL_OPENVLA), ("autoencoder", SMALL_AUTOENCODER)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(content))
    small = [
        "environment.horizon=8",
        "policy.kind=openvla_oft",
        f"policy.pretrained={folder / 'policy'}",
        "policy.openvla.gradient_checkpointing=true",
        "world_model.pretrained=",
        f"world_model.codec={folder / 'autoencoder'}",
        "world_model.network.hidden_size=32",
        "world_model.network.depth=2",
        "world_model.network.patch_size=[1,2,2]",
        "world_model.network.gate=plain",
        "world_model.network.mlp_activation=gelu_tanh",
        "world_model.network.per_block_modulation=false",
        "reward.kind=videomae_published",
        "reward.pretrained=published/reward-model",
        "reward.verify.enabled=false",
        "weights.dtype=bfloat16",
    ]
    return load_config("smoke", [*small, *settings])


@contextmanager
def random_weights(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside stand on `device` in `dtype` from the start: 7 billion parameters fit nowhere twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def make_policy(config: Config, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> Any:
    """An OpenVLA-OFT with a tokenizer of its own, adapters included if the config asks for them."""
    facts = environment_facts(config.environment)
    blueprint = policy_blueprint(config, facts)
    depths = blueprint.depths if layers is None else (*blueprint.depths[:2], layers)
    with random_weights(device, dtype):
        policy = blueprint.build(depths)
    policy.attach_files(companions(config, facts))
    return policy.eval()


def make_world_model(config: Config, device: torch.device, dtype: torch.dtype) -> Any:
    """A diffusion world model whose network and autoencoder have their weights in `dtype`."""
    facts = environment_facts(config.environment)
    blueprint = world_blueprint(config, facts, config.world_model.pretrained)
    with random_weights(device, dtype):
        world = blueprint.build(blueprint.depth)
    height, width, _ = facts.frame_shape
    world = published_world_model(
        world.denoiser.network.to(dtype),
        world.codec,
        frame_size=(height, width),
        chunk_length=world.chunk_length,
        denoiser=config.world_model.denoiser,
    ).with_sampler(world.sampler.config)
    nn.Module.to(world.codec.autoencoder, dtype).eval()
    world.denoiser.requires_grad_(False).eval()
    return world.to(device)


def make_reward_model(config: Config, size: str, device: torch.device) -> Any:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    from wmpo_ray.reward_models.preprocessing import FramePreprocessing
    from wmpo_ray.reward_models.published_videomae import PublishedRewardModel

    if size == "small":
        network = VideoMAEForVideoClassification(VideoMAEConfig(**SMALL_REWARD))
    else:
        blueprint = reward_blueprint(config, environment_facts(config.environment))
        network = blueprint.build(blueprint.depths)
    side = network.config.image_size
    return PublishedRewardModel(network.eval().to(device), FramePreprocessing(resize=side, crop=side))


def instruction() -> str:
    """As many words as make a prompt of `PROMPT_LENGTH` tokens."""
    return " ".join(["push"] * INSTRUCTION_WORDS)


def word_tokenizer(words: Sequence[str]) -> bytes:
    """A `tokenizer.json` that knows these words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str().encode()


def companions(config: Config, facts: EnvironmentFacts) -> dict[str, bytes]:
    """Tokenizer and statistics of a random policy."""
    words = {*PROMPT.format("").lower().replace(":", " : ").replace("?", " ? ").split(), "In", "What", "Out", "push"}
    for text in facts.instructions:
        words |= set(text.lower().split())
    scale = {"q01": [-1.0] * facts.action_dim, "q99": [1.0] * facts.action_dim}
    return {
        TOKENIZER: word_tokenizer(sorted(words)),
        STATISTICS: json.dumps({"random": {"action": scale}}).encode(),
    }
