"""What every implementation of a protocol must hold. A new one adds an entry here and passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.openvla import small_policy
from tests.support.published_set import small_reward_model
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Environment, Policy, RewardModel, WorldModel
from wmpo_ray.core.types import StartState
from wmpo_ray.environments.pocket.env import INSTRUCTIONS, PocketEnvironment
from wmpo_ray.environments.recorded import RecordedKind
from wmpo_ray.kinds import ENVIRONMENTS, POLICIES, REWARD_MODELS, WORLD_MODELS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of
from wmpo_ray.registry import make_environment
from wmpo_ray.reward_models.videomae import VideoMAERewardModel
from wmpo_ray.reward_models.videomae_kind import VideoMAERewardConfig
from wmpo_ray.world_models.diffusion import DiffusionWorldModel
from wmpo_ray.world_models.diffusion_settings import DiffusionConfig
from wmpo_ray.world_models.simulator import SimulatorWorldModel


def make_diffusion() -> DiffusionWorldModel:
    config = DiffusionConfig.model_validate(
        {"network": {"hidden_size": 16, "depth": 1, "num_heads": 2}, "sampler": {"num_steps": 2}}
    )
    world_model = DiffusionWorldModel.create(config, 3, 4, seed=0)
    torch.nn.init.normal_(world_model.denoiser.network.final_layer.linear.weight, std=0.1)
    return world_model


def make_tiny() -> TinyPolicy:
    torch.manual_seed(0)
    return TinyPolicy(
        TinyPolicyHFConfig(width=16, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary_of(INSTRUCTIONS))
    ).eval()


MAKERS = {
    "environment": {"pocket": lambda: PocketEnvironment(8)},
    "policy": {"tiny": make_tiny, "openvla_oft": small_policy},
    "world_model": {
        "diffusion": make_diffusion,
        "simulator": lambda: SimulatorWorldModel(lambda: PocketEnvironment(8), 4),
    },
    "reward_model": {
        "videomae": lambda: VideoMAERewardModel.create(
            VideoMAERewardConfig.model_validate({"network": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}}),
            16,
            INSTRUCTIONS,
            0,
        ),
        "videomae_published": small_reward_model,
    },
}


@pytest.mark.parametrize(
    "table, makers",
    [
        (ENVIRONMENTS, MAKERS["environment"]),
        (POLICIES, MAKERS["policy"]),
        (WORLD_MODELS, MAKERS["world_model"]),
        (REWARD_MODELS, MAKERS["reward_model"]),
    ],
)
def test_everything_registered_is_under_contract(table, makers):
    assert {kind for kind in table if not isinstance(table.find(kind), RecordedKind)} == set(makers)
    for kind in table:
        assert not [member for member in table.members if not hasattr(table.find(kind), member)]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"policy.kind='huge' is unknown; known are \['openvla_oft', 'tiny'\]"):
        POLICIES.find("huge")


def make_starts(count: int = 3) -> list[StartState]:
    environment = PocketEnvironment(8)
    frames = environment.reset(np.arange(count))
    return [
        StartState(f[None], text, i) for i, (f, text) in enumerate(zip(frames, environment.instruction, strict=True))
    ]


@pytest.mark.parametrize("kind", MAKERS["environment"])
def test_environment(kind):
    environment: Environment = MAKERS["environment"][kind]()
    assert isinstance(environment, Environment)
    assert isinstance(make_environment(Config().environment), Environment)
    frames = environment.reset([3, 4])
    assert frames.shape == (2, *environment.frame_shape) and frames.dtype == np.uint8
    assert (environment.reset([3, 4]) == frames).all(), "the same seed is the same scene"
    assert len(environment.instruction) == 2
    action = environment.expert_action(np.random.default_rng(0), 0.0)
    assert action.shape == (2, environment.action_dim) and np.abs(action).max() <= 1
    frame, terminated = environment.step(action)
    assert frame.shape == frames.shape and terminated.shape == (2,) and terminated.dtype == bool
    nothing, _ = environment.step(action, render=False)
    assert nothing is None and environment.success.shape == (2,)


@pytest.mark.parametrize("kind", MAKERS["policy"])
def test_policy(kind):
    policy: Policy = MAKERS["policy"][kind]()
    assert isinstance(policy, Policy) and isinstance(policy, torch.nn.Module)
    starts = make_starts()
    frames, texts = np.stack([s.frames[-1] for s in starts]), [s.instruction for s in starts]
    chunk = policy.act(frames, texts, 1.0, [1, 2, 3])
    length = policy.chunk_length * policy.action_dim
    assert chunk.tokens.shape == chunk.logprobs.shape == (3, length) and chunk.tokens.dtype == torch.int64
    assert chunk.actions.shape == (3, policy.chunk_length, policy.action_dim) and chunk.actions.abs().max() <= 1
    logprobs = policy.log_prob(frames, texts, chunk.tokens, 1.0)
    torch.testing.assert_close(logprobs.detach(), chunk.logprobs, atol=1e-5, rtol=0)
    logprobs.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


@pytest.mark.parametrize("kind", MAKERS["world_model"])
def test_world_model(kind):
    world_model: WorldModel = MAKERS["world_model"][kind]()
    assert isinstance(world_model, WorldModel)
    starts, seeds = make_starts(), [5, 6, 7]
    actions = torch.rand(3, world_model.chunk_length, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = world_model.start(starts)
    after, frames = world_model.imagine_chunk(state, actions, seeds)
    assert frames.shape == (3, world_model.chunk_length, 16, 16, 3) and frames.dtype == torch.uint8
    _, again = world_model.imagine_chunk(state, actions, seeds)
    assert torch.equal(frames, again), "the state that was given is unchanged, and the seed decides"
    _, onward = world_model.imagine_chunk(after, actions, seeds)
    assert onward.shape == frames.shape
    other = world_model.imagine_chunk(state, -actions, seeds)[1]
    assert not torch.equal(frames, other), "actions matter"
    alone = world_model.imagine_chunk(world_model.start(starts[1:2]), actions[1:2], seeds[1:2])[1]
    assert (alone[0].int() - frames[1].int()).abs().max() <= 1, "a trajectory does not depend on its neighbours"


@pytest.mark.parametrize("kind", MAKERS["reward_model"])
def test_reward_model(kind):
    model: RewardModel = MAKERS["reward_model"][kind]()
    assert isinstance(model, RewardModel)
    videos = np.random.default_rng(0).integers(0, 255, (2, 9, 16, 16, 3)).astype(np.uint8)
    probabilities = model.probabilities(videos, list(INSTRUCTIONS))
    assert probabilities.shape == (2, 9 - model.clip_length + 1)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    cut = model.probabilities(videos[:, :6], list(INSTRUCTIONS))
    np.testing.assert_allclose(cut, probabilities[:, : cut.shape[1]], atol=1e-5)
    never, always = (model.decide(np.full((2, 6), p, np.float32), 0, 8) for p in (0.0, 1.0))
    assert not never.success.any() and (never.finish_step == 8).all()
    assert always.success.all() and (always.finish_step == model.clip_length - 1).all()
