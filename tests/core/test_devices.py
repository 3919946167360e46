"""Models on another device than the host's: the edges are on the host, and nothing inside mixes the two.

There need be no GPU: tensors without values stand for it. They refuse to be read on the host, and a mode around the
calls refuses operations with tensors of both sides, as a GPU does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.openvla import small_policy
from tests.support.small_world import random_chunk, scene_starts, small_world_model
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.runtime_settings import process_device
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.flow.flow_policy import FlowPolicy, FlowPolicyHFConfig
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.reward_models.preprocessing import FramePreprocessing
from wmpo_ray.reward_models.published_videomae import PublishedRewardModel
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_settings import VideoMAERewardConfig
from wmpo_ray.world_models.autoencoder import AutoencoderCodec

OTHER = torch.device("meta")
HOST = torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class TwoDevices(TorchDispatchMode):
    """Copies between host and device are the only operations that see both; a copy to the host is zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        if func is COPIES[0] and args[0].device == OTHER and kwargs.get("device") == HOST:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) < 2 or func in COPIES, f"{func} on {sorted(devices)}"
        return func(*args, **kwargs)


def tiny_policy() -> TinyPolicy:
    return TinyPolicy(TinyPolicyHFConfig(width=32, patch_size=8, vocabulary=vocabulary_of(INSTRUCTIONS))).eval()


def flow_policy() -> FlowPolicy:
    return FlowPolicy(FlowPolicyHFConfig(width=32, patch_size=8, vocabulary=vocabulary_of(INSTRUCTIONS))).eval()


def openvla_policy() -> Any:
    return small_policy(image_steps="rollout")


@pytest.mark.parametrize("make", [tiny_policy, flow_policy, openvla_policy])
def test_a_policy_acts_and_learns_on_its_device(make):
    policy = make().to(OTHER)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    seen = Observation.of(frames, ["push the block", "pull the block slowly"])
    with TwoDevices():
        chunk = policy.act(seen, 1.0, [1, 2])
        assert {part.device for part in (chunk.actions, chunk.logprobs, *chunk.record.values())} == {HOST}
        losses = (
            policy.log_prob(seen, chunk.record, 1.0).mean(),
            policy.cloning_loss(seen, chunk.actions),
        )
        for loss in losses:
            assert loss.device == OTHER
            loss.backward()
    assert {parameter.grad.device for parameter in policy.parameters() if parameter.grad is not None} == {OTHER}


@pytest.mark.parametrize("codec", ["pixel", "autoencoder"])
def test_a_world_model_imagines_on_its_device_and_shows_frames_on_the_host(codec):
    world = small_world_model()
    if codec == "autoencoder":
        autoencoder = AutoencoderKL(block_out_channels=(4,), latent_channels=3, norm_num_groups=2)
        world.codec = AutoencoderCodec(autoencoder.eval(), posterior_seed=1)
    world.to(OTHER)
    with TwoDevices():
        state, _ = world.start(scene_starts(2))
        for _ in range(2):
            state, made = world.step_chunk(state, random_chunk(2), [1, 2])
            assert isinstance(made.frames, np.ndarray) and state.latents.device == OTHER


def published_reward_model() -> PublishedRewardModel:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    sizes = {"image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 16, "num_hidden_layers": 1}
    network = VideoMAEForVideoClassification(
        VideoMAEConfig(**sizes, num_attention_heads=2, intermediate_size=16, use_mean_pooling=True)
    )
    return PublishedRewardModel(network.eval(), FramePreprocessing(resize=16, crop=16))


@pytest.mark.parametrize(
    "make", [lambda: VideoMAERewardModel.create(VideoMAERewardConfig(), 16, INSTRUCTIONS, 0), published_reward_model]
)
def test_a_reward_model_judges_on_its_device(make):
    model = make()
    model.network.to(OTHER)
    videos = np.zeros((2, 6, 20, 20, 3) if isinstance(model, PublishedRewardModel) else (2, 6, 16, 16, 3), np.uint8)
    with TwoDevices():
        probabilities = model.probabilities(videos, list(INSTRUCTIONS))
        assert isinstance(probabilities, np.ndarray) and probabilities.shape == (2, 3)
        model.clip_logits(torch.as_tensor(videos[:, :4]).to(OTHER), list(INSTRUCTIONS)).sum().backward()


def test_the_device_of_a_process_is_its_gpu_if_it_sees_one(monkeypatch):
    assert process_device("cpu") == HOST
    for sees, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda sees=sees: sees)
        assert process_device("auto").type == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match='cluster.device="cuda": this process sees no GPU; give its role one'):
        process_device("cuda")
    with pytest.raises(ConfigError, match='cluster.device="gpu" is no device'):
        process_device("gpu")
