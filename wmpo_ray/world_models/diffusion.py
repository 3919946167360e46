"""The learned world model: codec + denoiser + sampler behind the `World` protocol, with its files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import FramesMode
from wmpo_ray.core.observations import Observation, StartState, Transition
from wmpo_ray.core.section import Bytes, Count
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.core.timeline import span
from wmpo_ray.core.untrusted import NetworkSettings, check_finite, check_network, inside, read_settings
from wmpo_ray.environments.layout import WHOLE_FRAME, FrameLayout
from wmpo_ray.model_files.saved_networks import save_network
from wmpo_ray.world_models.autoencoder import AutoencoderCodec, FrameCodec, PixelCodec
from wmpo_ray.world_models.denoiser import MAP_CHANNELS, Denoiser, num_action_features
from wmpo_ray.world_models.diffusion_settings import DenoiserConfig, DiffusionConfig, SamplerConfig
from wmpo_ray.world_models.latent_context import LatentContext
from wmpo_ray.world_models.sampler import RectifiedFlowSampler
from wmpo_ray.world_models.stdit import STDiT
from wmpo_ray.world_models.target_views import TargetViews, target_settings, targets_alone

PRETRAINED_DIR = Path(__file__).parent / "pretrained"
SETTINGS_FILE = "world_model.json"
TINY_DECODER = "tiny_decoder"  # folder beside the autoencoder's
POSTERIOR_SEED = 0  # one noise for every frame of every run: latents of the same frame are equal
MAX_FRAMES = 2**12  # of a context or a chunk; no weight bounds their number


class _CodecOptions(BaseModel):
    """Of an autoencoder; `tiny_decoder`: the folder contains one too."""

    model_config = ConfigDict(extra="forbid")
    posterior_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_decode_bytes: Bytes | None = None
    tiny_decoder: bool = False


class _FileSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    denoiser: DenoiserConfig
    sampler: SamplerConfig
    codec: str
    codec_options: _CodecOptions | None = None
    frame_size: tuple[Count, Count] | tuple[None, None] | None = None
    context_frames: Annotated[Count, Field(le=MAX_FRAMES)]
    chunk_length: Annotated[Count, Field(le=MAX_FRAMES)]
    layout: TargetViews | None = None


class _NetworkSettings(NetworkSettings):
    depth: Count
    num_heads: Count
    patch_size: tuple[Count, Count, Count]
    in_channels: Count
    action_dim: Count
    pad_action_num: Count
    input_sq_size: Count
    conditioning_timestep: float

    @property
    def num_layers_in_all(self) -> int:
        return self.depth


class DiffusionWorldModel:
    """Imagines the next K frames from the last c frames and K actions (implements `interfaces.World`)."""

    abilities = frozenset({"imagines", "reconstructs", "render", "slots"})

    def __init__(
        self,
        denoiser: Denoiser,
        codec: FrameCodec,
        sampler: RectifiedFlowSampler,
        context_frames: int,
        chunk_length: int,
    ):
        self.denoiser = denoiser
        self.codec = codec
        self.sampler = sampler
        self.context_frames = context_frames
        self.chunk_length = chunk_length

    @classmethod
    def create(
        cls, config: DiffusionConfig, action_dim: int, chunk_length: int, seed: int, layout: FrameLayout = WHOLE_FRAME
    ) -> DiffusionWorldModel:
        """A fresh network of the configured size, that draws where actions aim as `layout` says."""
        codec = make_codec(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = STDiT(
                **config.network.model_dump(),
                in_channels=codec.latent_channels + MAP_CHANNELS * config.denoiser.action_map,
                out_channels=codec.latent_channels if config.denoiser.action_map else None,
                action_dim=num_action_features(action_dim, config.denoiser.action_bands),
                pad_action_num=config.context_frames,
                conditioning_timestep=1000 * config.denoiser.conditioning_noise,
            )
            initialise(network)
        denoiser = Denoiser(network, config.denoiser, layout=targets_alone(layout, config.denoiser))
        sampler = RectifiedFlowSampler(config.sampler.over(SamplerConfig()))
        return cls(denoiser, codec, sampler, config.context_frames, chunk_length)

    def to(self, device: torch.device | str) -> DiffusionWorldModel:
        """Move network and codec; returns this world model."""
        self.denoiser.to(device)
        if isinstance(self.codec, AutoencoderCodec):
            self.codec.autoencoder.to(device)
            if self.codec.decoder is not None:
                self.codec.decoder.to(device)
        return self

    def with_sampler(self, config: SamplerConfig) -> DiffusionWorldModel:
        """The same network and codec, sampled as `config` says."""
        return DiffusionWorldModel(
            self.denoiser, self.codec, RectifiedFlowSampler(config), self.context_frames, self.chunk_length
        )

    # -- imagining -----------------------------------------------------------------------------------------------

    def start(self, starts: Sequence[StartState]) -> tuple[LatentContext, Observation]:
        """Encode the start frames; a start with fewer than c frames repeats its first.

        Raises ValueError for a start without frames.
        """
        empty = [i for i, start in enumerate(starts) if not len(start.frames)]
        if empty:
            raise ValueError(f"start {empty[0]} has no frames to imagine from; start from recorded episodes")
        clips = [_last_frames(start.frames, self.context_frames) for start in starts]
        latents = self.codec.encode(torch.stack(clips).to(self.denoiser.network.device))
        texts = tuple(start.instruction for start in starts)
        return LatentContext(latents, texts), Observation.of(np.stack([s.frames[-1] for s in starts]), texts)

    @torch.no_grad()
    def step_chunk(
        self, state: LatentContext, actions: Tensor, seeds: list[int], frames: FramesMode = "all"
    ) -> tuple[LatentContext, Transition]:
        """Imagine K frames; one noise seed for each row. It never ends by itself, and knows of no success."""
        context = state.latents
        device = context.device
        batch, channels, c, height, width = context.shape
        shape = (channels, c + self.chunk_length, height, width)
        with span("denoise", device):
            noise = keyed_noise(seeds, shape).to(device)
            conditioning = self.denoiser.condition(context, noise[:, :, :c])
            latents = self.sampler.sample(self.denoiser, noise[:, :, c:], actions.to(device), conditioning)
        newest = torch.cat([context, latents], 2)[:, :, -c:]
        observation = shown = None
        if frames != "none":
            with span("decode"):
                wanted = latents if frames == "all" else latents[:, :, -1:]
                decoded = self.codec.decode(wanted).cpu().numpy()
            observation = Observation.of(decoded[:, -1], state.instructions)
            shown = decoded if frames == "all" else None
        steps = np.full(batch, self.chunk_length, np.int64)
        transition = Transition(observation, shown, np.zeros(batch, bool), None, steps)
        return LatentContext(newest, state.instructions), transition

    @torch.no_grad()
    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Videos [M, n, H, W, 3] uint8, encoded and decoded again: what is lost by the codec alone."""
        encoded = self.codec.encode(torch.from_numpy(np.array(frames)).to(self.denoiser.network.device))
        return self.codec.decode(encoded).cpu().numpy()

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write network (diffusers layout, safetensors) and settings into the folder `path`, an autoencoder with them."""
        path = Path(path)
        network = self.denoiser.network
        if dtype is not None:
            network = copy.deepcopy(network)
            torch.nn.Module.to(network, dtype)  # diffusers' own warns of modules that there are none of
        save_network(network, path)
        settings: dict[str, Any] = {
            "denoiser": self.denoiser.config.model_dump(),
            "sampler": self.sampler.config.model_dump(),
            "codec": self.codec.name,
            "frame_size": self.denoiser.frame_size,
            "context_frames": self.context_frames,
            "chunk_length": self.chunk_length,
        }
        if self.denoiser.layout.targets:
            settings["layout"] = target_settings(self.denoiser.layout)
        if isinstance(self.codec, AutoencoderCodec):
            settings["codec_options"] = _save_autoencoder(self.codec, path).model_dump()
        (path / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def load(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> DiffusionWorldModel:
        """Load a folder, or one of the names in `wmpo_ray/world_models/pretrained`, the network in `dtype`.

        Raises UserError where neither exists, and for a folder that is damaged or names files outside of it.
        """
        shipped = sorted(p.name for p in PRETRAINED_DIR.glob("*") if p.is_dir())
        path = PRETRAINED_DIR / name if str(name) in shipped else Path(name)
        if not (path / SETTINGS_FILE).is_file():
            raise UserError(f"no world model at {path}; shipped are {shipped}; set world_model.pretrained")
        settings = read_settings(path / SETTINGS_FILE, _FileSettings)
        codec = _load_codec(path, settings)
        check_network(path, "diffusion_pytorch_model", _NetworkSettings, STDiT.from_config)
        network = STDiT.from_pretrained(path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
        check_finite(network, path)
        if network.config.action_dim % num_action_features(1, settings.denoiser.action_bands):
            raise UserError(
                f"{path / SETTINGS_FILE}: denoiser.action_bands = {settings.denoiser.action_bands} does not fit the "
                f"network's {network.config.action_dim} action features"
            )
        torch.nn.Module.to(network, dtype)  # diffusers' own warns of modules that there are none of
        height, width = settings.frame_size or (None, None)
        frame_size = (height, width) if height and width else None
        layout = settings.layout.layout() if settings.layout else WHOLE_FRAME
        denoiser = Denoiser(network, settings.denoiser, frame_size, layout)
        sampler = RectifiedFlowSampler(settings.sampler)
        return cls(denoiser, codec, sampler, settings.context_frames, settings.chunk_length)


def context_frames_of(path: str | Path) -> int:
    """Of the world model saved in `path`, without loading it. Raises UserError for damaged settings."""
    return read_settings(Path(path) / SETTINGS_FILE, _FileSettings).context_frames


def make_codec(config: DiffusionConfig) -> FrameCodec:
    """`pixel`, or the folder of a diffusers `AutoencoderKL`, in the precision of the network."""
    if config.codec == PixelCodec.name:
        return PixelCodec()
    return AutoencoderCodec.load(
        config.codec,
        tiny_decoder=config.tiny_decoder or None,
        dtype=_codec_dtype(config.denoiser),
        posterior_seed=POSTERIOR_SEED if config.posterior == "sample" else None,
        max_decode_bytes=config.max_decode_bytes,
    )


def _save_autoencoder(codec: AutoencoderCodec, folder: Path) -> _CodecOptions:
    save_network(codec.autoencoder, folder / codec.name)
    if codec.decoder is not None:
        save_network(codec.decoder, folder / TINY_DECODER)
    return _CodecOptions(
        posterior_seed=codec.posterior_seed,
        max_decode_bytes=codec.max_decode_bytes,
        tiny_decoder=codec.decoder is not None,
    )


def _codec_dtype(config: DenoiserConfig) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def _load_codec(folder: Path, settings: _FileSettings) -> FrameCodec:
    """The codec that the settings in a world model's folder name: that folder contains the autoencoder."""
    if settings.codec == PixelCodec.name:
        return PixelCodec()
    options = settings.codec_options or _CodecOptions()
    return AutoencoderCodec.load(
        inside(folder, settings.codec, f"{folder / SETTINGS_FILE}, codec,"),
        dtype=_codec_dtype(settings.denoiser),
        tiny_decoder=folder / TINY_DECODER if options.tiny_decoder else None,
        posterior_seed=options.posterior_seed,
        max_decode_bytes=options.max_decode_bytes,
    )


def initialise(network: STDiT) -> None:
    """Small output projections: every block starts near the identity, the residual output near zero."""
    for block in [*network.spatial_blocks, *network.temporal_blocks]:
        torch.nn.init.normal_(block.attn.proj.weight, std=0.02)
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.02)
        torch.nn.init.normal_(block.scale_shift_table, std=0.02)
        if block.modulation is not None:
            torch.nn.init.normal_(block.modulation.weight, std=0.02)
            torch.nn.init.zeros_(block.modulation.bias)
    torch.nn.init.normal_(network.final_layer.scale_shift_table, std=0.02)
    torch.nn.init.zeros_(network.final_layer.linear.weight)
    torch.nn.init.zeros_(network.final_layer.linear.bias)


def _last_frames(frames, count: int) -> Tensor:
    """The last `count` frames of [n, H, W, 3]; the first is repeated where there are fewer."""
    frames = torch.as_tensor(frames)
    missing = count - len(frames)
    if missing > 0:
        frames = torch.cat([frames[:1].expand(missing, -1, -1, -1), frames])
    return frames[-count:]
