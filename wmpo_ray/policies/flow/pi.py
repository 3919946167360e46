"""The networks of pi0 (Black et al. 2024, arXiv 2410.24164) and pi0.5 (2025, arXiv 2504.16054) as their weights name them.

A PaliGemma reads images and an instruction; a narrower Gemma, the action expert, denoises a chunk: layer by layer its
tokens attend to what was read and to each other. pi0 gives the expert the robot's state as a token of its own and the
time of a noisy chunk with every action. pi0.5 has the state in the instruction, and the time steers the expert's norms,
which also say how much of a layer is added. The vision tower is that of transformers, all else is here.

Two output layers over the vocabulary stand in published files that nothing computes with; they are not held here.

B rows, P tokens of what was read, K actions of D dimensions in a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.core.section import Count, Positive, Section
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.policies.flow.expert_attention import Reading, attended, rotated, time_features

with lean():
    from transformers import SiglipVisionConfig, SiglipVisionModel

NUM_HEADS, NUM_VISION_HEADS = 8, 16  # of all published variants
EPSILON = 1e-6
STACKS = "paligemma_with_expert"
READER, EXPERT = f"{STACKS}.paligemma.model.language_model", f"{STACKS}.gemma_expert.model"
TOWER = f"{STACKS}.paligemma.model.vision_tower.vision_model"
EMBEDDING = f"{READER}.embed_tokens.weight"
# Output layers of published files: the first is the embedding, and neither is ever computed with.
READER_HEAD, EXPERT_HEAD = f"{STACKS}.paligemma.lm_head.weight", f"{STACKS}.gemma_expert.lm_head.weight"


class PiSettings(Section):
    """Keys of the published config.json that decide what is computed, with the published values."""

    max_state_dim: Count = 32
    max_action_dim: Count = 32
    chunk_size: Count = 50
    num_steps: Count = 10
    min_period: Positive = 4e-3
    max_period: Positive = 4.0


class GemmaSizes(NamedTuple):
    width: int
    depth: int
    mlp_width: int
    head_size: int

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], prefix: str) -> GemmaSizes:
        layer = f"{prefix}.layers.0"
        mlp_width, width = shapes[f"{layer}.mlp.gate_proj.weight"]
        return cls(width, depth_of(shapes, prefix), mlp_width, shapes[f"{layer}.self_attn.k_proj.weight"][0])


class PiSizes(NamedTuple):
    """What config.json only names by a variant; the defaults are those of the published weights."""

    reader: GemmaSizes = GemmaSizes(2048, 18, 16_384, 256)
    expert: GemmaSizes = GemmaSizes(1024, 18, 4096, 256)
    vocabulary: int = 257_152
    vision_width: int = 1152
    vision_depth: int = 27
    vision_mlp_width: int = 4304
    patch_size: int = 14
    image_size: int = 224

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> PiSizes:
        """Those that weights have; raises LookupError or ValueError where they are no pi0's."""
        vision_width, _, patch_size, _ = shapes[f"{TOWER}.embeddings.patch_embedding.weight"]
        num_patches, _ = shapes[f"{TOWER}.embeddings.position_embedding.weight"]
        return cls(
            GemmaSizes.of(shapes, READER),
            GemmaSizes.of(shapes, EXPERT),
            shapes[EMBEDDING][0],
            vision_width,
            depth_of(shapes, f"{TOWER}.encoder"),
            shapes[f"{TOWER}.encoder.layers.0.mlp.fc1.weight"][0],
            patch_size,
            patch_size * math.isqrt(num_patches),
        )


def depth_of(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    """The number of layers whose tensors begin with a prefix."""
    start = f"{prefix}.layers."
    return len({name[len(start) :].split(".", 1)[0] for name in shapes if name.startswith(start)})


class PiNetwork(nn.Module):
    """`state_dict` has the published names without their first word, "model", and without the two output layers."""

    def __init__(self, settings: PiSettings, sizes: PiSizes, steers_norms: bool):
        """steers_norms: pi0.5."""
        super().__init__()
        self.settings, self.sizes, self.steers_norms = settings, sizes, steers_norms
        width = sizes.expert.width
        self.paligemma_with_expert = _TwoStacks(sizes, width if steers_norms else None)
        self.action_in_proj = nn.Linear(settings.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, settings.max_action_dim)
        if steers_norms:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(settings.max_state_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)

    def read(
        self,
        images: Sequence[Tensor],
        image_masks: Sequence[Tensor],
        words: Tensor,
        word_mask: Tensor,
        state: Tensor | None = None,
    ) -> Reading:
        """images [B, 3, H, W] in [-1, 1] and their masks [B] bool, one for each camera; words [B, n] int64 and their mask
        [B, n] bool; state [B, max_state_dim], None for pi0.5.
        """
        parts = [self.paligemma_with_expert.embed_image(image) for image in images]
        masks = [mask[:, None].expand(part.shape[:2]) for mask, part in zip(image_masks, parts, strict=True)]
        tokens = torch.cat([*parts, self.paligemma_with_expert.embed_words(words)], 1)
        is_there = torch.cat([*masks, word_mask], 1)
        visible = is_there[:, None, :] & is_there[:, :, None]
        layers = self.paligemma_with_expert.read(tokens, visible, is_there.cumsum(1) - 1)
        token = None if self.steers_norms or state is None else self.state_proj(state)[:, None]
        return Reading(layers, is_there, token)

    def velocity(self, states: Tensor, times: Tensor, reading: Reading) -> Tensor:
        """Velocity [B, K, D] of noisy chunks [B, K, D] at times [B]; 1 is noise."""
        tokens, condition = self.action_in_proj(states), None
        periods = self.settings.min_period, self.settings.max_period
        time = time_features(times, tokens.shape[-1], *periods).to(tokens.dtype)
        if self.steers_norms:
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
        else:
            together = torch.cat([tokens, time[:, None].expand_as(tokens)], -1)
            tokens = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(together)))
        return self.action_out_proj(self.paligemma_with_expert.denoise(tokens, reading, condition))

    def sample(self, noise: Tensor, reading: Reading) -> Tensor:
        """The chunk [B, K, D] that the ODE makes of noise in `num_steps` steps."""
        state, num_steps = noise, self.settings.num_steps
        for step in range(num_steps):
            times = torch.full((len(noise),), 1 - step / num_steps, device=noise.device)
            state = state - self.velocity(state, times, reading) / num_steps
        return state


class _Named(nn.Module):
    """Modules under the names that published weights have for them."""

    def __init__(self, **children: nn.Module):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class _TwoStacks(nn.Module):
    """PaliGemma and the expert, layer beside layer."""

    def __init__(self, sizes: PiSizes, condition: int | None):
        super().__init__()
        reader = sizes.reader
        language = _Named(
            embed_tokens=nn.Embedding(sizes.vocabulary, reader.width),
            layers=nn.ModuleList(GemmaLayer(reader, None) for _ in range(reader.depth)),
            norm=_Norm(reader.width, None),
        )
        projector = _Named(linear=nn.Linear(sizes.vision_width, reader.width))
        tower = _Named(vision_model=_vision_model(sizes))
        model = _Named(vision_tower=tower, multi_modal_projector=projector, language_model=language)
        self.paligemma: Any = _Named(model=model)
        layers = nn.ModuleList(GemmaLayer(sizes.expert, condition) for _ in range(sizes.expert.depth))
        self.gemma_expert: Any = _Named(model=_Named(layers=layers, norm=_Norm(sizes.expert.width, condition)))

    def embed_image(self, image: Tensor) -> Tensor:
        model = self.paligemma.model
        seen = model.vision_tower.vision_model(pixel_values=image).last_hidden_state
        return model.multi_modal_projector.linear(seen)

    def embed_words(self, words: Tensor) -> Tensor:
        spoken = self.paligemma.model.language_model.embed_tokens(words)
        return spoken * spoken.shape[-1] ** 0.5

    def read(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of each layer for tokens [B, P, width]; visible [B, P, P] bool."""
        kept = []
        for layer in self.paligemma.model.language_model.layers:
            tokens, own = layer(tokens, visible, positions)
            kept.append(own)
        return tuple(kept)

    def denoise(self, tokens: Tensor, reading: Reading, condition: Tensor | None) -> Tensor:
        """Tokens of actions [B, K, expert width] -> the same, normed. They see the state, which does not see them."""
        count = tokens.shape[1]
        if reading.state is not None:
            tokens = torch.cat([reading.state, tokens], 1)
        size = tokens.shape[1]
        own = torch.ones(size, size, dtype=torch.bool, device=tokens.device)
        own[: size - count, size - count :] = False
        read = reading.is_there[:, None, :].expand(-1, size, -1)
        visible = torch.cat([read, own.expand(len(tokens), -1, -1)], 2)
        positions = reading.is_there.sum(1)[:, None] + torch.arange(size, device=tokens.device)
        expert = self.gemma_expert.model
        for layer, before in zip(expert.layers, reading.layers, strict=True):
            tokens, _ = layer(tokens, visible, positions, before, condition)
        return expert.norm(tokens, condition)[0][:, -count:]


def _vision_model(sizes: PiSizes) -> nn.Module:
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=sizes.vision_mlp_width,
            num_hidden_layers=sizes.vision_depth,
            num_attention_heads=NUM_VISION_HEADS,
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
            vision_use_head=False,
        )
    )
    # Before version 5.6 transformers had the tower inside of what it calls the vision model.
    return getattr(model, "vision_model", model)


class _Norm(nn.Module):
    """Gemma's root mean square norm; steered, it takes its scale, a shift and the gate behind it from a condition."""

    def __init__(self, width: int, condition: int | None):
        super().__init__()
        if condition is None:
            self.weight = nn.Parameter(torch.zeros(width))
        else:
            self.dense = nn.Linear(condition, 3 * width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [B, n, width], condition [B, C] -> x normed, and its gate [B, 1, width]."""
        normed = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON)
        if condition is None:
            return (normed * (1 + self.weight.float())).to(x.dtype), None
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, -1)
        return (normed * (1 + scale.float()) + shift.float()).to(x.dtype), gate.to(x.dtype)


class GemmaLayer(nn.Module):
    """A layer of Gemma: one head of keys and values for all queries."""

    def __init__(self, sizes: GemmaSizes, condition: int | None):
        super().__init__()
        width, inner = sizes.width, NUM_HEADS * sizes.head_size
        self.head_size = sizes.head_size
        self.input_layernorm = _Norm(width, condition)
        self.self_attn: Any = _Named(
            q_proj=nn.Linear(width, inner, bias=False),
            k_proj=nn.Linear(width, sizes.head_size, bias=False),
            v_proj=nn.Linear(width, sizes.head_size, bias=False),
            o_proj=nn.Linear(inner, width, bias=False),
        )
        self.post_attention_layernorm = _Norm(width, condition)
        self.mlp: Any = _Named(
            gate_proj=nn.Linear(width, sizes.mlp_width, bias=False),
            up_proj=nn.Linear(width, sizes.mlp_width, bias=False),
            down_proj=nn.Linear(sizes.mlp_width, width, bias=False),
        )

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        positions: Tensor,
        before: tuple[Tensor, Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """tokens [B, n, width], visible [B, n, tokens before and n]; -> tokens, and their own keys and values."""
        normed, gate = self.input_layernorm(tokens, condition)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, self.head_size))
            for projection in (self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj)
        )
        own = rotated(key, positions), value
        keys, values = own if before is None else (torch.cat(pair, 1) for pair in zip(before, own, strict=True))
        heads = attended(rotated(query, positions), keys, values, visible)
        tokens = _added(tokens, self.self_attn.o_proj(heads), gate)
        normed, gate = self.post_attention_layernorm(tokens, condition)
        inner = F.gelu(self.mlp.gate_proj(normed), approximate="tanh") * self.mlp.up_proj(normed)
        return _added(tokens, self.mlp.down_proj(inner), gate), own


def _added(tokens: Tensor, change: Tensor, gate: Tensor | None) -> Tensor:
    return tokens + change if gate is None else tokens + change * gate
