"""The network of SmolVLA (Shukor et al. 2025, arXiv 2506.01844) with the names and shapes of its published weights.

A SmolVLM, cut to its first layers, reads images, an instruction and the robot's state; an action expert of narrower
layers denoises a chunk. In every `self_attn_every_n_layers`-th layer the actions attend to what was read and to each
other, in the others only to what was read, by keys and values that the expert projects once more. The vision tower and
the layers are those of transformers, which the published names come from; how the two stacks meet is here.

B rows, P tokens of what was read, K actions of D dimensions in a chunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.core.section import Count, Positive, Section
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.policies.flow.expert_attention import Reading, attended, rotated, time_features

with lean():
    from transformers import AutoModel, SmolVLMConfig, SmolVLMForConditionalGeneration

FEED_FORWARD_MULTIPLE = 256


class SmolVLASettings(Section):
    """Keys of the published config.json that decide what the network is, with the published values."""

    max_state_dim: Count = 32
    max_action_dim: Count = 32
    chunk_size: Count = 50
    num_steps: Count = 10
    num_vlm_layers: int = 16  # 0 or less: all
    num_expert_layers: int = -1  # 0 or less: one for each layer that reads
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: Positive = 0.75
    min_period: Positive = 4e-3
    max_period: Positive = 4.0


class SmolVLANetwork(nn.Module):
    """`state_dict` has the published names without their first word, "model"."""

    def __init__(self, settings: SmolVLASettings, vlm: Mapping[str, Any]):
        """vlm: the config.json of the vision-language model that the settings name."""
        super().__init__()
        self.settings = settings
        self.vlm_with_expert = _TwoStacks(settings, SmolVLMConfig.from_dict(dict(vlm)))
        width, expert = self.vlm_with_expert.text.hidden_size, self.vlm_with_expert.expert_text.hidden_size
        self.state_proj = nn.Linear(settings.max_state_dim, width)
        self.action_in_proj = nn.Linear(settings.max_action_dim, expert)
        self.action_out_proj = nn.Linear(expert, settings.max_action_dim)
        self.action_time_mlp_in = nn.Linear(2 * expert, expert)
        self.action_time_mlp_out = nn.Linear(expert, expert)

    def read(
        self,
        images: Sequence[Tensor],
        image_masks: Sequence[Tensor],
        words: Tensor,
        word_mask: Tensor,
        state: Tensor | None,
    ) -> Reading:
        """images [B, 3, H, W] in [-1, 1] and their masks [B] bool, one for each camera; words [B, n] int64 and their mask
        [B, n] bool; state [B, max_state_dim]. Images and words do not see the state.
        """
        parts = [self.vlm_with_expert.embed_image(image) for image in images]
        masks = [mask[:, None].expand(part.shape[:2]) for mask, part in zip(image_masks, parts, strict=True)]
        spoken = self.vlm_with_expert.embed_words(words)
        tokens = torch.cat([*parts, spoken, self.state_proj(state)[:, None]], 1)
        is_there = torch.cat([*masks, word_mask, torch.ones_like(word_mask[:, :1])], 1)
        block = torch.zeros(tokens.shape[1], dtype=torch.int64, device=tokens.device)
        block[-1] = 1
        visible = (block[None, :] <= block[:, None]) & is_there[:, None, :] & is_there[:, :, None]
        return Reading(self.vlm_with_expert.read(tokens, visible, is_there.cumsum(1) - 1), is_there)

    def velocity(self, states: Tensor, times: Tensor, reading: Reading) -> Tensor:
        """Velocity [B, K, D] of noisy chunks [B, K, D] at times [B]; 1 is noise."""
        actions = self.action_in_proj(states)
        time = time_features(times, actions.shape[-1], self.settings.min_period, self.settings.max_period)
        together = torch.cat([actions, time.to(actions.dtype)[:, None].expand_as(actions)], -1)
        tokens = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(together)))
        return self.action_out_proj(self.vlm_with_expert.denoise(tokens, reading))

    def sample(self, noise: Tensor, reading: Reading) -> Tensor:
        """The chunk [B, K, D] that the ODE makes of noise in `num_steps` steps."""
        state, num_steps = noise, self.settings.num_steps
        for step in range(num_steps):
            times = torch.full((len(noise),), 1 - step / num_steps, device=noise.device)
            state = state - self.velocity(state, times, reading) / num_steps
        return state


class _TwoStacks(nn.Module):
    """The vision-language model and the expert, layer beside layer."""

    def __init__(self, settings: SmolVLASettings, config: SmolVLMConfig):
        super().__init__()
        self.text, self.every = config.text_config, settings.self_attn_every_n_layers
        self.vlm = SmolVLMForConditionalGeneration(config)
        if settings.num_vlm_layers > 0:
            self.vlm.model.text_model.layers = self.vlm.model.text_model.layers[: settings.num_vlm_layers]
        self.num_layers = len(self.vlm.model.text_model.layers)
        self.expert_text = self._expert_config(settings)
        self.lm_expert = AutoModel.from_config(self.expert_text)
        self.lm_expert.embed_tokens = None
        self.spacing = self.num_layers // self.expert_text.num_hidden_layers
        inputs, outputs = (text.num_key_value_heads * text.head_dim for text in (self.text, self.expert_text))
        for number, layer in enumerate(self.lm_expert.layers):
            if not self._sees_actions(number):
                for name in ("k_proj", "v_proj"):
                    setattr(layer.self_attn, name, nn.Linear(inputs, outputs, bias=self.expert_text.attention_bias))

    def _expert_config(self, settings: SmolVLASettings) -> Any:
        text = copy.deepcopy(self.text)
        text.hidden_size = int(self.text.hidden_size * settings.expert_width_multiplier)
        # Two thirds of four times the width, rounded up, as in LLaMA.
        wanted = int(4 * int(2 * text.hidden_size / 3))
        text.intermediate_size = -(-wanted // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE
        text.num_hidden_layers = settings.num_expert_layers if settings.num_expert_layers > 0 else self.num_layers
        return text

    def _sees_actions(self, number: int) -> bool:
        """Whether actions see each other in a layer."""
        return self.every > 0 and number % self.every == 0

    def embed_image(self, image: Tensor) -> Tensor:
        vision = self.vlm.model.vision_model
        rows, columns = (size // vision.patch_size for size in image.shape[2:])
        everywhere = torch.ones(len(image), rows, columns, dtype=torch.bool, device=image.device)
        patches = vision.embeddings(pixel_values=image, patch_attention_mask=everywhere)
        # Its own forward would look at the values of that mask, and a plan's tensors have none.
        tokens = vision.encoder(inputs_embeds=patches, attention_mask=None).last_hidden_state
        seen = self.vlm.model.connector(vision.post_layernorm(tokens))
        return seen * seen.shape[-1] ** 0.5

    def embed_words(self, words: Tensor) -> Tensor:
        spoken = self.vlm.model.text_model.get_input_embeddings()(words)
        return spoken * math.sqrt(spoken.shape[-1])

    def read(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of each layer for tokens [B, P, width]; visible [B, P, P] bool."""
        kept = []
        for layer in self.vlm.model.text_model.layers:
            query, key, value = _projected(layer, layer.input_layernorm(tokens))
            query, key = rotated(query, positions), rotated(key, positions)
            kept.append((key, value))
            tokens = _after(layer, tokens, attended(query, key, value, visible))
        return tuple(kept)

    def denoise(self, tokens: Tensor, reading: Reading) -> Tensor:
        """tokens [B, K, expert width] -> the same, normed."""
        count = tokens.shape[1]
        own = torch.arange(count, device=tokens.device)
        behind = reading.is_there.sum(1)[:, None] + own
        read = reading.is_there[:, None, :].expand(-1, count, -1)
        causal = (own[None, :] <= own[:, None]).expand(len(tokens), -1, -1)
        for number in range(0, self.num_layers, self.spacing):
            layer, (key, value) = self.lm_expert.layers[number // self.spacing], reading.layers[number]
            normed = layer.input_layernorm(tokens)
            if self._sees_actions(number):
                query, new_key, new_value = _projected(layer, normed)
                key = torch.cat([key, rotated(new_key, behind)], 1)
                value = torch.cat([value, new_value], 1)
                heads = attended(rotated(query, behind), key, value, torch.cat([read, causal], 2))
            else:
                size = layer.self_attn.head_dim
                query = layer.self_attn.q_proj(normed).unflatten(-1, (-1, size))
                key = layer.self_attn.k_proj(key.flatten(2)).unflatten(-1, (-1, size))
                value = layer.self_attn.v_proj(value.flatten(2)).unflatten(-1, (-1, size))
                heads = attended(rotated(query, own[None].expand(len(tokens), -1)), key, value, read)
            tokens = _after(layer, tokens, heads)
        return self.lm_expert.norm(tokens)


def _projected(layer: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, n, heads, E]."""
    attention = layer.self_attn
    query, key, value = (
        projection(normed).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return query, key, value


def _after(layer: Any, tokens: Tensor, heads: Tensor) -> Tensor:
    tokens = tokens + layer.self_attn.o_proj(heads)
    return tokens + layer.mlp(layer.post_attention_layernorm(tokens))
