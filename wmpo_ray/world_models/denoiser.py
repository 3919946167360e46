"""Between the network and the schedule: what the network is shown, what its output means, and the training loss.

The network knows no schedule, the sampler knows no training. Rectified flow throughout: x_t = (1-t) x_0 + t e with t in
[0, 1], velocity v = x_0 - e. The published weights predict v from plain inputs; the embedded world model predicts x_0 as
a residual on the clean last conditioning frame, which keeps a still background still.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wmpo_ray.core.rounding import cosine, sine
from wmpo_ray.environments.layout import WHOLE_FRAME, FrameLayout
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig
from wmpo_ray.world_models.pixel_weights import ColourWeights
from wmpo_ray.world_models.stdit import ConditioningCache, STDiT
from wmpo_ray.world_models.target_views import draw_square, draw_targets

TIME_SCALE = 1000.0  # the network counts diffusion time from 0 to 1000


class Conditioning(NamedTuple):
    """What one chunk is conditioned on, computed once and used in every step."""

    cache: ConditioningCache
    last_frame: Tensor  # [B, C, 1, H, W]


def shared_by_clip(actions: Tensor) -> Tensor:
    """The mean action of a chunk at each of its frames, [B, K, D] -> [B, K, D]: what the paper's ablation leaves of them."""
    return actions.mean(1, keepdim=True).expand_as(actions)


def action_features(actions: Tensor, bands: int) -> Tensor:
    """Append sin and cos of pi 2^k a, k < bands: [B, K, D] -> [B, K, D (1 + 2 bands)]."""
    if bands == 0:
        return actions
    frequencies = torch.tensor([math.pi * 2.0**band for band in range(bands)], device=actions.device)
    angles = (actions[..., None] * frequencies).flatten(-2)
    return torch.cat([actions, sine(angles), cosine(angles)], -1)


MAP_CHANNELS = 3


def action_map(actions: Tensor, height: int, width: int, layout: FrameLayout = WHOLE_FRAME) -> Tensor:
    """Draw absolute targets into the frame: [B, K, D] -> [B, MAP_CHANNELS, K, height, width].

    Where they lie in each view is in the targets of `layout`; without these, the first two dimensions are x and y in
    [-1, 1] over the frame. The last dimension closes the gripper when positive (of two there is none, and its channels
    are 0). Channels: a 2x2 pixel square at the target (exact coverage, so that its position is known to a fraction of a
    pixel), the same times the grip, and the grip everywhere.
    """
    closing = actions[..., -1] if actions.shape[-1] > 2 else torch.zeros_like(actions[..., 0])
    grip = (closing * 8).clamp(-1, 1)[..., None, None]
    if layout.targets:
        square = draw_targets(actions, height, width, layout)
    else:
        square = draw_square(actions[..., 0], actions[..., 1], height, width)
    return torch.stack([square, square * grip, grip.expand_as(square)], 1)


def num_action_features(action_dim: int, bands: int) -> int:
    return action_dim * (1 + 2 * bands)


class Denoiser(nn.Module):
    """`frame_size` is the (height, width) in pixels that the network scales its positions by, if not the latent's.

    layout: where actions aim, for the action map; `pixel_weights` may be set for a training.
    """

    def __init__(
        self,
        network: STDiT,
        config: DenoiserConfig,
        frame_size: tuple[int, int] | None = None,
        layout: FrameLayout = WHOLE_FRAME,
    ):
        super().__init__()
        self.network = network
        self.config = config
        self.frame_size = frame_size or (None, None)
        self.layout = layout
        self.pixel_weights: ColourWeights | None = None

    def autocast(self) -> AbstractContextManager:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.network.device.type, torch.bfloat16)

    # -- sampling ------------------------------------------------------------------------------------------------

    def condition(self, context: Tensor, noise: Tensor | None = None) -> Conditioning:
        """context [B, C, c, H, W] latents; `noise` of that shape is mixed in at the level `sampling_noise`."""
        level = self.config.sampling_noise
        shown = context if noise is None or not level else torch.lerp(context, noise, level)
        with self.autocast():
            cache = self.network.encode_conditioning(self._with_map(shown, None), *self.frame_size)
        return Conditioning(cache, context[:, :, -1:])

    def velocity(self, noisy: Tensor, t: Tensor, actions: Tensor, conditioning: Conditioning) -> Tensor:
        """v [B, C, K, H, W] at noisy frames [B, C, K, H, W], t [B] in (0, 1], actions [B, K, D] in [-1, 1]."""
        actions = self._known(actions)
        features = action_features(actions, self.config.action_bands)
        with self.autocast():
            output = self.network.forward_cached(
                self._with_map(self._shown(noisy, t), actions),
                t * TIME_SCALE,
                features,
                conditioning.cache,
                *self.frame_size,
            )
        output = output[:, : noisy.shape[1]]
        if self.config.prediction == "velocity":
            return output
        sample = output + conditioning.last_frame if self.config.residual else output
        return (sample - noisy) / _per_sample(t, noisy)

    def _known(self, actions: Tensor) -> Tensor:
        """What the network is told of the actions [B, K, D]."""
        return actions if self.config.action_level == "frame" else shared_by_clip(actions)

    def _shown(self, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy * (1 - _per_sample(t, noisy)) if self.config.input_scaling else noisy

    def _with_map(self, frames: Tensor, actions: Tensor | None) -> Tensor:
        """Append the action map to frames being denoised, zeros to conditioning frames: they know no action."""
        if not self.config.action_map:
            return frames
        batch, _, length, height, width = frames.shape
        if actions is None:
            return torch.cat([frames, frames.new_zeros(batch, MAP_CHANNELS, length, height, width)], 1)
        return torch.cat([frames, action_map(actions, height, width, self.layout).to(frames.dtype)], 1)

    # -- training ------------------------------------------------------------------------------------------------

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Diffusion times [B] in (0, 1]."""
        if self.config.time_distribution == "logit_normal":
            t = torch.randn(batch, generator=generator).sigmoid()
        else:
            t = torch.rand(batch, generator=generator) * 0.98 + 0.02
        pure = torch.rand(batch, generator=generator) < self.config.pure_noise_share
        return torch.where(pure, torch.ones(()), t)

    def loss(self, clip: Tensor, num_context: int, actions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Loss of each sample [B]: mean squared error over the predicted frames.

        clip [B, C, c+K, H, W] clean latents, the first `num_context` of them conditioning; actions [B, K, D]; t [B] in
        [0, 1]; noise like clip. Conditioning frames are noised at `conditioning_noise` with the same noise (the paper
        perturbs them so that imperfect frames of the model's own making do not derail it).
        """
        c, actions = num_context, self._known(actions)
        mask = torch.arange(clip.shape[2], device=clip.device)[None] >= c
        x_mask = mask.expand(len(clip), -1)
        future, last = clip[:, :, c:], clip[:, :, c - 1 : c]
        noisy = torch.lerp(future, noise[:, :, c:], _per_sample(t, clip))
        context = torch.lerp(clip[:, :, :c], noise[:, :, :c], self.config.conditioning_noise)
        shown = torch.cat([self._with_map(context, None), self._with_map(self._shown(noisy, t), actions)], 2)
        with self.autocast():
            features = action_features(actions, self.config.action_bands)
            output = self.network(shown, t * TIME_SCALE, features, x_mask, *self.frame_size)
        output = output[:, : clip.shape[1], c:]
        if self.config.prediction == "velocity":
            error = output - (future - noise[:, :, c:])
        else:
            error = (output + last if self.config.residual else output) - future
        return (error.square() * self._weights(future, last)).flatten(1).mean(1)

    def _weights(self, future: Tensor, last: Tensor) -> Tensor | float:
        if self.config.changed_pixel_weight == 1.0 and self.pixel_weights is None:
            return 1.0
        changed = (future - last).abs().amax(1, keepdim=True) > self.config.changed_pixel_threshold
        weights = 1.0 + (self.config.changed_pixel_weight - 1.0) * changed
        return weights if self.pixel_weights is None else weights + self.pixel_weights.extra(future, last, changed)


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.dim() - 1))
