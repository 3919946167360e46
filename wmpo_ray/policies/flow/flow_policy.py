"""A small vision-language-action policy with a flow-matching action head: a chunk is denoised from noise, in steps.

Patches of the image and words of the instruction see each other and are computed once; the K actions of a noisy chunk
see them and each other, at every step anew (as the action expert of pi0 does: Black et al. 2024, arXiv 2410.24164).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.interfaces import Decision, Seeds
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.rounding import cosine, sine
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.policies.action_tokens import executed_tokens
from wmpo_ray.policies.flow.denoising import Denoising, noised, path_log_probs, path_rules, times_of
from wmpo_ray.policies.small_policy import KeysAndValues, SmallFileSettings, SmallPolicy

with lean():
    from transformers import PretrainedConfig


class FlowPolicyHFConfig(PretrainedConfig):
    model_type = "wmpo_flow_policy"

    def __init__(
        self,
        width: int = 96,
        num_layers: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        patch_size: int = 4,
        frame_size: FrameSize = 16,
        chunk_length: int = 4,
        action_dim: int = 3,
        time_bands: int = 6,
        vocabulary: Sequence[str] = (),
        max_words: int = 8,
        image_mean: Sequence[float] = (40.0, 44.0, 52.0),
        image_std: float = 64.0,
        **kwargs,
    ):
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.frame_size = frame_size if isinstance(frame_size, int) else list(frame_size)
        self.chunk_length = chunk_length
        self.action_dim = action_dim
        self.time_bands = time_bands
        self.vocabulary = list(vocabulary)
        self.max_words = max_words
        self.image_mean = list(image_mean)
        self.image_std = image_std
        super().__init__(**kwargs)


class _FileSettings(SmallFileSettings):
    time_bands: Annotated[int, Field(ge=1, le=64)]


class FlowPolicy(SmallPolicy):
    """Implements `wmpo_ray.core.interfaces.Policy`.

    The record of a decision is its path [B, S+1, K, D] float32, from the noise it began with to the chunk, not yet
    clipped to [-1, 1]. At temperature 0 the ODE is followed from the likeliest noise, zero; such a path has no density,
    and its log-probabilities are zeros. At any other the SDE is, from drawn noise, which is the same under all weights
    and so no part of the log-probabilities.
    """

    config_class = FlowPolicyHFConfig
    file_settings: ClassVar[type[SmallFileSettings]] = _FileSettings
    denoising = Denoising()

    def __init__(self, config: FlowPolicyHFConfig):
        super().__init__(config)
        width = config.width
        self.action = nn.Linear(config.action_dim, width)
        self.action_position = nn.Parameter(torch.randn(config.chunk_length, width) * 0.5)
        self.time = nn.Sequential(nn.Linear(2 * config.time_bands, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = self.make_layers()
        self.norm = nn.LayerNorm(width)
        self.velocity = nn.Linear(width, config.action_dim)
        self.post_init()

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(
        self,
        states: Tensor,
        times: Tensor,
        frames: Tensor | None = None,
        word_ids: Tensor | None = None,
        seen: list[KeysAndValues] | None = None,
    ) -> Tensor:
        """states [B, S, K, D] at times [B, S] or [S] -> velocities [B, S, K, D]; the S states do not see each other.

        What is seen is given as frames [B, H, W, 3] uint8 and word_ids [B, max_words] int64, or as what it was for
        earlier states: a list that is filled where it is empty and used where it is not.
        """
        batch, count = states.shape[:2]
        seen = [] if seen is None else seen
        if not seen:
            assert frames is not None and word_ids is not None
            tokens = torch.cat(self.embed(frames, word_ids), 1)
            for layer in self.layers:
                tokens, own = layer(tokens)
                seen.append(own)
        actions = self.action(states) + self.action_position + self.time(self._bands(times))[..., None, :]
        actions = actions.expand(batch, count, -1, -1).flatten(0, 1)
        for layer, (key, value) in zip(self.layers, seen, strict=True):
            before = (key.repeat_interleave(count, 0), value.repeat_interleave(count, 0)) if count > 1 else (key, value)
            actions, _ = layer(actions, before)
        return self.velocity(self.norm(actions)).unflatten(0, (batch, count))

    def _bands(self, times: Tensor) -> Tensor:
        """Times [...] in [0, 1] as sines and cosines [..., 2 * time_bands] of doubling frequencies."""
        angles = times[..., None] * (math.pi / 2 * 2.0 ** torch.arange(self.config.time_bands, device=times.device))
        return torch.cat([sine(angles), cosine(angles)], -1)

    # -- the policy protocol -------------------------------------------------------------------------------------

    @property
    def num_sampling_steps(self) -> int:
        return self.denoising.sde_steps

    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        level = temperature * self.denoising.noise
        num_steps = self.denoising.sde_steps if level else self.denoising.ode_steps
        shape = (len(seeds), num_steps + 1, self.chunk_length, self.action_dim)
        noise = (keyed_noise(seeds, shape[1:]) if level else torch.zeros(shape)).to(self.device)
        seen: list[KeysAndValues] = []
        inputs = self._inputs(observation)
        path, velocities = [noise[:, 0]], []
        for step, (time, rule) in enumerate(zip(times_of(num_steps)[:-1], path_rules(num_steps, level), strict=True)):
            now = torch.tensor([time], device=self.device)
            velocities.append(self(path[-1][:, None], now, **inputs, seen=seen)[:, 0])
            path.append(rule.keep * path[-1] + rule.push * velocities[-1] + rule.spread * noise[:, step + 1])
        whole = torch.stack(path, 1)
        if level:
            logprobs = path_log_probs(whole, torch.stack(velocities, 1), level)
        else:
            logprobs = torch.zeros(len(seeds), self.denoising.sde_steps * self.chunk_length * self.action_dim)
        return Decision(path[-1].clamp(-1, 1).cpu(), {"path": whole.cpu()}, logprobs.cpu())

    def log_prob(self, observation: Observation, record: dict[str, Tensor], temperature: float) -> Tensor:
        path = record["path"].to(self.device)
        times = torch.tensor(times_of(path.shape[1] - 1)[:-1], device=self.device)
        velocity = self(path[:, :-1], times, **self._inputs(observation))
        return path_log_probs(path, velocity, temperature * self.denoising.noise)

    def executed(self, num_actions: Tensor) -> Tensor:
        """An action is decided in every step."""
        of_a_step = executed_tokens(num_actions, self.chunk_length, self.action_dim)
        return of_a_step.repeat(1, self.denoising.sde_steps)

    def cloning_loss(self, observation: Observation, actions: Tensor, seeds: Seeds = None) -> Tensor:
        """Mean squared distance of the velocities, over noises and times of `cloning_draws` each; times are spread evenly.

        The first one is uniform: of the last normal number of a row, its distribution function.
        """
        draws, size = self.denoising.cloning_draws, self.chunk_length * self.action_dim
        normal = keyed_noise(list(range(len(actions)) if seeds is None else seeds), (draws * size + 1,))
        first = torch.special.ndtr(normal[:, -1:].double()).float()
        times = ((first + torch.arange(draws) / draws) % 1).to(self.device)
        noise = normal[:, :-1].view(-1, draws, self.chunk_length, self.action_dim).to(self.device)
        states, velocity = noised(actions.to(self.device)[:, None], noise, times)
        return F.mse_loss(self(states, times, **self._inputs(observation)), velocity)

    def _inputs(self, observation: Observation) -> dict[str, Tensor]:
        """What is seen, from the main camera alone."""
        frames = torch.as_tensor(observation.frames).to(self.device)
        return {"frames": frames, "word_ids": self.word_ids(observation.instructions)}
