"""OpenVLA-OFT: two vision towers, a projector and a Llama that decodes a whole chunk of action tokens at once.

B rows, K actions of D dimensions in a chunk, L = K*D tokens, N prompt tokens, P image patches, V vocabulary.
Action tokens are ids of the vocabulary, V-256 to V-1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import Decision, Seeds
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.core.untrusted import check_folder, parse_json
from wmpo_ray.model_files.lean_imports import lean
from wmpo_ray.model_files.weight_files import WeightFiles, find_safetensors, load_network
from wmpo_ray.policies.action_tokens import executed_tokens, sample_tokens
from wmpo_ray.policies.openvla.actions import ActionStatistics, ActionTokenizer, check_statistics
from wmpo_ray.policies.openvla.chunk_attention import BIDIRECTIONAL, RotaryPositions, key_mask
from wmpo_ray.policies.openvla.lora import merged_state
from wmpo_ray.policies.openvla.prompt import TOKENIZER, TOKENIZER_MODEL, PromptTokenizer
from wmpo_ray.policies.openvla.published_files import (
    STATISTICS,
    STEM,
    image_processor,
    is_stored_frequency,
    read_companions,
)
from wmpo_ray.policies.openvla.settings import OpenVLAConfig, read_config
from wmpo_ray.policies.openvla.vision import Projector, VisionBackbone

with lean():
    from transformers import AutoModelForCausalLM, PreTrainedModel

STOP = 2


class OpenVLAOFTPolicy(PreTrainedModel):
    """Implements `wmpo_ray.core.interfaces.Policy`; its state dict has the published names.

    The network has no dropout, so `train` and `eval` compute the same.
    """

    config_class = OpenVLAConfig
    base_model_prefix = "policy"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer", "VisionBlock"]

    def __init__(self, config: OpenVLAConfig):
        super().__init__(config)
        towers = config.towers
        self.chunk_length, self.action_dim = config.num_actions_chunk, config.action_dim
        image_size = (config.image_sizes[0], config.image_sizes[1])
        self.vision_backbone = VisionBackbone(towers, image_size)
        self.projector = Projector(towers[0].embed_dim + towers[1].embed_dim, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config, attn_implementation=BIDIRECTIONAL)
        self.language_model.model.rotary_emb = RotaryPositions(config.text_config)
        self.action_tokenizer = ActionTokenizer(config.vocab_size, config.n_action_bins)
        self.attach_files({})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation is kept."""

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **changes: Any,
    ) -> Self:
        """A published folder, or one that `save_pretrained` wrote; weights go straight from the disk to `device`.

        `dtype` defaults to that of config.json. `changes` are new values of `num_actions_chunk`, `action_dim`,
        `unnorm_key`, `image_steps`, `compute_dtype` or `empty_token_id`. Raises UserError where the folder is none, or
        is damaged, and ConfigError for a change that does not fit.
        """
        folder = Path(path)
        check_folder(folder)
        files = find_safetensors(folder, STEM)
        config = read_config(folder, changes, len(files.specs))
        network = cls.from_weights(config, files, dtype or config.dtype or torch.float32, device)
        network.attach_files(read_companions(folder))
        check_statistics(*network._statistics)
        return network

    @classmethod
    def from_weights(
        cls, config: OpenVLAConfig, files: WeightFiles, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Self:
        """The network of a config with the weights of files. Raises UserError where they do not belong together."""
        with torch.random.fork_rng(devices=[]):
            network = load_network(files, lambda: cls(config), ignored=is_stored_frequency, dtype=dtype, device=device)
        # Buffers have no values on the meta device.
        network.attach_files({})
        return network

    def attach_files(self, companions: dict[str, bytes]) -> None:
        """The small files of the folder: tokenizer, image processor, statistics; `save_pretrained` writes them back."""
        self._companions = companions
        self._images = image_processor(companions, self.config)
        self._prompts = PromptTokenizer.of(companions, self.config.vocab_size, self.config.empty_token_id)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """config.json and safetensors in the published names, adapters merged, and the files that were attached."""
        super().save_pretrained(save_directory, **{"state_dict": merged_state(self), **kwargs})
        for name, content in self._companions.items():
            (Path(save_directory) / name).write_bytes(content)

    @property
    def statistics(self) -> ActionStatistics:
        """Of dataset_statistics.json, else of config.json. Raises UserError where neither has those asked for."""
        content, key, where = self._statistics
        return ActionStatistics.find(content, key, self.action_dim, where)

    @property
    def _statistics(self) -> tuple[Any, str | None, str]:
        """Those of all data sets, the name of the one asked for, and what errors name."""
        key = self.config.unnorm_key
        if STATISTICS in self._companions:
            return parse_json(self._companions[STATISTICS], STATISTICS), key, STATISTICS
        return self.config.norm_stats, key, "norm_stats in config.json"

    def train(self, mode: bool = True) -> Self:
        # Transformers checkpoints activations in training mode only, and a GRPO learner stays in evaluation mode.
        return super().train(mode or self.is_activation_checkpointing)

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        full_vocabulary: bool = False,
        with_stop: bool = False,
    ) -> Tensor:
        """Logits of the action tokens, [B, L, bins], over the whole padded vocabulary if asked.

        input_ids [B, N] starting with BOS, padded on either side where attention_mask [B, N] is False (None: nowhere);
        pixel_values [B, 6, h, w]. `with_stop` adds those of the stop token, [B, L+1, ...].
        """
        with self._precision():
            embeddings, lengths = self.embed(input_ids, pixel_values, attention_mask)
            size = embeddings.shape[1]
            hidden = self.language_model.model(
                inputs_embeds=embeddings,
                attention_mask=None if attention_mask is None else key_mask(lengths, size),
                position_ids=torch.arange(size, device=embeddings.device)[None],
                use_cache=False,
            ).last_hidden_state
            # The token after the prompt is read where the prompt ends, and so on.
            num_tokens = self.chunk_length * self.action_dim
            first = lengths - num_tokens - 2
            places = first[:, None] + torch.arange(num_tokens + with_stop, device=hidden.device)
            hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
            if full_vocabulary:
                return self.language_model.lm_head(hidden)
            end = self.config.vocab_size
            return F.linear(hidden, self.language_model.lm_head.weight[end - self.config.n_action_bins : end])

    def embed(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """BOS, patches, rest of the prompt, L zeros, stop, then any padding: [B, N+P+L+1, width], true lengths [B]."""
        batch, longest = input_ids.shape
        num_tokens = self.chunk_length * self.action_dim
        if attention_mask is None:
            lengths = torch.full((batch,), longest, device=input_ids.device)
        else:
            lengths = attention_mask.sum(1)
            order = (~attention_mask.bool()).to(torch.uint8).argsort(dim=1, stable=True)
            input_ids = input_ids.gather(1, order)
        ids = F.pad(input_ids, (0, num_tokens + 1), value=STOP)
        place = torch.arange(ids.shape[1], device=ids.device) - lengths[:, None]
        # What lies behind the stop token is masked: any embedding will do.
        ids = torch.where(place >= num_tokens, STOP, ids)
        is_slot = (place >= 0) & (place < num_tokens)
        words = self.language_model.model.embed_tokens(ids) * ~is_slot[..., None]
        patches = self.projector(self.vision_backbone(pixel_values.to(words.dtype)))
        embeddings = torch.cat([words[:, :1], patches.to(words.dtype), words[:, 1:]], 1)
        return embeddings, lengths + patches.shape[1] + num_tokens + 1

    def _precision(self) -> AbstractContextManager[Any]:
        """Weights in float32 may compute in bfloat16: master weights without a second copy."""
        if self.config.compute_dtype == "bfloat16" and self.dtype == torch.float32:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    # -- the policy protocol -------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Observation, temperature: float, seeds: list[int]) -> Decision:
        logits = self(**self.inputs(observation)).float()
        uniform = keyed_noise(seeds, (logits.shape[1],), uniform=True).to(self.device)
        bins, logprobs = sample_tokens(logits, temperature, uniform)
        tokens = bins + self.first_action_id
        actions = self.action_tokenizer.decode(tokens).float().unflatten(1, (self.chunk_length, self.action_dim))
        return Decision(actions.cpu(), {"tokens": tokens.cpu()}, logprobs.cpu())

    def log_prob(self, observation: Observation, record: dict[str, Tensor], temperature: float) -> Tensor:
        logits = self(**self.inputs(observation)).float()
        logprobs = F.log_softmax(logits / (temperature or 1.0), -1)
        bins = record["tokens"].to(self.device) - self.first_action_id
        return logprobs.gather(-1, bins[..., None])[..., 0]

    def executed(self, num_actions: Tensor) -> Tensor:
        return executed_tokens(num_actions, self.chunk_length, self.action_dim)

    def cloning_loss(self, observation: Observation, actions: Tensor, seeds: Seeds = None) -> Tensor:
        """Mean cross-entropy of the L tokens of actions [B, K, D] in [-1, 1] and of the stop token, over all V."""
        logits = self(**self.inputs(observation), full_vocabulary=True, with_stop=True)
        return token_loss(logits, self.action_tokenizer.encode(actions.to(self.device)).flatten(1))

    def encode(self, actions: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.action_tokenizer.encode(actions).flatten(1).cpu()}

    @property
    def first_action_id(self) -> int:
        return self.config.vocab_size - self.config.n_action_bins

    def inputs(self, observation: Observation) -> dict[str, Tensor | None]:
        """What `forward` wants, from the main camera. Raises UserError where the folder had no tokenizer."""
        if self._prompts is None:
            raise UserError(
                f"this policy's folder has no {TOKENIZER} and no {TOKENIZER_MODEL}, so it can read no instruction; put "
                "one of them beside the weights"
            )
        pad = self.config.text_config.pad_token_id or 0
        ids, mask = self._prompts.batch(observation.instructions, pad)
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": None if mask is None else mask.to(self.device),
            "pixel_values": self._images(torch.as_tensor(observation.frames).to(self.device)),
        }


def token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of tokens [B, L] and a stop token after them, under logits [B, L+1, V]."""
    targets = F.pad(tokens, (0, 1), value=STOP)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
