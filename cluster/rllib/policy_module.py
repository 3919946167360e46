"""A policy as RLlib's module, with a critic beside it.

RLlib's losses see a policy through a distribution over actions. A policy of ours decides on chunks and judges what it has
decided by its record, so the "distribution" here is the list of log-probabilities of the recorded decision: tokens of one
kind of policy, steps of another. That is all that the losses of PPO, APPO and IMPALA take from it.

B rows in a batch, K actions per chunk, D action dimensions, L log-probabilities per chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.rl_module.apis import TargetNetworkAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.apis.target_network_api import TARGET_NETWORK_ACTION_DIST_INPUTS
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from wmpo_ray.config.run import Config
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import MAIN_CAMERA, Observation
from wmpo_ray.environments.imagined import INSTRUCTION, STATE
from wmpo_ray.registry import load_policy

RECORD = "record_"  # before the names of the parts of a policy's record, in RLlib's batches
POOLED, HIDDEN = 16, 128  # of the critic: pixels of a side, and features
WIDEST = 2**62  # seeds are below


class RecordedDecision(Distribution):
    """Log-probabilities [B, L] of decisions that were made; says nothing of any others."""

    def __init__(self, logprobs: Tensor):
        self.logprobs = logprobs

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> RecordedDecision:
        return cls(logits)

    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        """[B], whatever `value` is: it must be what was recorded."""
        return self.logprobs.sum(-1)

    def entropy(self, **kwargs: Any) -> Tensor:
        """An estimate [B] by the one decision, without a gradient: it is logged, never learned from."""
        return -self.logp(None).detach()

    def kl(self, other: Distribution, **kwargs: Any) -> Tensor:
        """An estimate [B] by the one decision (k1), where this one is what it was drawn from."""
        assert isinstance(other, RecordedDecision)
        return self.logp(None) - other.logp(None)

    def sample(self, **kwargs: Any) -> Any:
        raise NotImplementedError("the policy itself decides")

    def rsample(self, **kwargs: Any) -> Any:
        raise NotImplementedError("the policy itself decides")

    @staticmethod
    def required_input_dim(space: Any, **kwargs: Any) -> int:
        return int(np.prod(space.shape))


class Critic(nn.Module):
    """Value [B] of what the main camera sees, made 16 x 16, with the instruction and, where there is one, the state."""

    def __init__(self, num_instructions: int, state_size: int):
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(3 * POOLED**2, HIDDEN), nn.Tanh())
        self.instruction = nn.Embedding(num_instructions, HIDDEN)
        self.state = nn.Linear(state_size, HIDDEN) if state_size else None
        self.value = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        pixels = observation[MAIN_CAMERA].float().movedim(-1, 1) / 255 - 0.5
        features = self.picture(F.adaptive_avg_pool2d(pixels, POOLED).flatten(1))
        features = features + self.instruction(observation[INSTRUCTION].long())
        if self.state is not None:
            features = features + self.state(observation[STATE].float())
        return self.value(features)[:, 0]


class PolicyModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI):
    """`model_config`: `config` as JSON text, `policy` the folder of what training begins with, `instructions` in order."""

    def setup(self) -> None:
        settings = self.model_config
        config = Config.model_validate_json(settings["config"])
        self.temperature, self.instructions = config.rollout.temperature, tuple(settings["instructions"])
        self.policy: Any = load_policy(config, settings["policy"], training=not self.inference_only)
        state = self.observation_space.spaces.get(STATE)
        self.critic = Critic(len(self.instructions), 0 if state is None else int(state.shape[0]))
        self.action_dist_cls = RecordedDecision
        self.policy_before: Any = None

    def train(self, mode: bool = True) -> PolicyModule:
        """The policy never drops out: log-probabilities of sampling and of learning must agree."""
        super().train(mode)
        self.policy.eval()
        return self

    # -- acting --------------------------------------------------------------------------------------------------

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, self.temperature)

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._act(batch, 0.0)

    def _act(self, batch: dict[str, Any], temperature: float) -> dict[str, Any]:
        """One chunk for each row; seeds are drawn from torch's generator, which RLlib seeds in every process."""
        observation = self._observation(batch)
        seeds = torch.randint(WIDEST, (len(observation),)).tolist()
        decision = self.policy.act(observation, temperature, seeds)
        return {
            Columns.ACTIONS: decision.actions,
            Columns.ACTION_LOGP: decision.logprobs.sum(-1),
            Columns.ACTION_DIST_INPUTS: decision.logprobs,
            **{RECORD + name: values for name, values in decision.record.items()},
        }

    # -- learning ------------------------------------------------------------------------------------------------

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._logprobs(self.policy, batch)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        return self.critic(batch[Columns.OBS])

    def make_target_networks(self) -> None:
        self.policy_before = copy.deepcopy(self.policy).eval().requires_grad_(False)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.policy, self.policy_before)]

    def forward_target(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {TARGET_NETWORK_ACTION_DIST_INPUTS: self._logprobs(self.policy_before, batch)}

    def _logprobs(self, policy: Policy, batch: dict[str, Any]) -> Tensor:
        record = {name.removeprefix(RECORD): values for name, values in batch.items() if name.startswith(RECORD)}
        return policy.log_prob(self._observation(batch), record, self.temperature)

    def _observation(self, batch: dict[str, Any]) -> Observation:
        seen = {name: values.cpu().numpy() for name, values in batch[Columns.OBS].items()}
        texts, state = seen.pop(INSTRUCTION), seen.pop(STATE, None)
        return Observation(seen, tuple(self.instructions[int(number)] for number in texts), state)
