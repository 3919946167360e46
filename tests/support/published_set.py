"""A set of small random checkpoints in the published layouts, sized for the embedded task, and a config that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from tests.support.openvla import small_policy
from wmpo_ray.core.observations import StartState
from wmpo_ray.environments.pocket.env import PocketEnvironment
from wmpo_ray.reward_models.preprocessing import FramePreprocessing
from wmpo_ray.reward_models.published_videomae import THRESHOLD_FILE, PublishedRewardModel
from wmpo_ray.rollout.fidelity import replay_videos
from wmpo_ray.world_models.autoencoder import AutoencoderCodec
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.published_stdit import published_world_model, save_published_network
from wmpo_ray.world_models.stdit import STDiT

CHUNK, CONTEXT, HORIZON = 4, 4, 8
NETWORK = {"hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": (1, 2, 2), "action_dim": 3}
ANY_GATE = {
    "num_trajectories": 4,
    "min_label_agreement": 0.0,
    "min_f1": 0.0,
    "min_event_agreement": 0.0,
    "max_success_gap": 1.0,
}
ROLLOUT = {
    "chunk_length": CHUNK,
    "group_size": 4,
    "groups_per_update": 2,
    "groups_per_request": 2,
    "max_attempts": 32,
}


def small_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).eval()


def small_reward_model() -> PublishedRewardModel:
    """Weights that are large enough for a clip to matter."""
    network = VideoMAEForVideoClassification(
        VideoMAEConfig(
            image_size=16,
            patch_size=8,
            num_frames=4,
            tubelet_size=2,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            use_mean_pooling=True,
            num_labels=2,
        )
    )
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return PublishedRewardModel(network.eval(), FramePreprocessing(resize=16, crop=16))


def write_published_set(folder: Path) -> dict[str, Path]:
    """Folders "policy", "world-model", "codec" and "reward"; outcomes of the reward model differ between videos."""
    folders = {name: folder / name for name in ("policy", "world-model", "codec", "reward")}
    # Chunk and dimensions of another robot: the run says which are its own.
    small_policy(num_actions_chunk=8, action_dim=7, unnorm_key=None).save_pretrained(folders["policy"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = STDiT(**NETWORK)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        save_published_network(network, folders["world-model"], dead_parameters=False)
        codec = small_autoencoder()
        codec.save_pretrained(folders["codec"], safe_serialization=True)
        reward = small_reward_model()
    _mix_outcomes(reward, published_world_model(network, AutoencoderCodec(codec), frame_size=(16, 16), num_steps=2))
    reward.save(folders["reward"])
    (folders["reward"] / THRESHOLD_FILE).unlink()  # no published folder has it
    return folders


def _mix_outcomes(reward: PublishedRewardModel, world: DiffusionWorldModel) -> None:
    """Move the classifier so that half of what this world imagines at random passes 0.5."""
    environment = PocketEnvironment(HORIZON)
    frames = environment.reset(np.arange(12))
    starts = [StartState(frame[None], text) for frame, text in zip(frames, environment.instruction, strict=True)]
    actions = np.random.default_rng(0).uniform(-1, 1, (12, HORIZON, 3)).astype(np.float32)
    logits = reward.logits(replay_videos(world, starts, actions, seed=1))[:, :-1, 1]
    with torch.no_grad():
        reward.network.classifier.bias[1] -= logits.max(1).values.median()


def published_settings(folders: dict[str, Path]) -> dict[str, Any]:
    """Every model as it is, and one GRPO update that trains all weights."""
    openvla = {"unnorm_key": "coffee", "image_steps": "resize", "compute_dtype": "float32"}
    return {
        "environment": {"horizon": HORIZON},
        "demos": {"num_trajectories": 4},
        "policy": {
            "kind": "openvla_oft",
            "pretrained": str(folders["policy"]),
            "openvla": openvla,
            "cloning": {"steps": 0, "batch_size": 4},
        },
        "collect": {"num_trajectories": 4},
        "world_model": {
            "pretrained": str(folders["world-model"]),
            "codec": str(folders["codec"]),
            "context_frames": CONTEXT,
            "sampler": {"num_steps": 2},
            "alignment": {"steps": 0, "batch_size": 4, "warmup_steps": 1},
        },
        "reward": {
            "kind": "videomae_published",
            "pretrained": str(folders["reward"]),
            "steps": 0,
            "batch_size": 4,
            "clip_length": 4,
            "threshold": 0.5,
        },
        "gate": dict(ANY_GATE),
        "rollout": dict(ROLLOUT),
        "grpo": {"num_updates": 1, "minibatch_trajectories": 4, "learning_rate": 1e-2},
        "evaluation": {"num_starts": 4, "every_updates": 0, "num_starts_on_the_way": 4},
    }
