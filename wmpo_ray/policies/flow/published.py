"""A folder as lerobot saves SmolVLA, pi0 and pi0.5: config.json, and the processors' steps with their statistics.

`vlm/` holds what such a folder takes by name from the model that it was built on: its tokenizer.json and, for SmolVLA,
its config.json. Published folders have none; it is given beside them once and saved with a policy from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.section import Positive, shown
from wmpo_ray.core.untrusted import (
    MAX_SETTINGS_BYTES,
    NetworkSettings,
    all_finite,
    check_folder,
    inside,
    parse_json,
    read_bytes,
    read_settings,
    tensor_specs,
)

CONFIG, VLM = "config.json", "vlm"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
TOKENIZER, VLM_CONFIG = f"{VLM}/tokenizer.json", f"{VLM}/config.json"
# Carried along for who loads the saved folder elsewhere; nothing here reads them.
UNREAD = (f"{VLM}/tokenizer_config.json", f"{VLM}/special_tokens_map.json", f"{VLM}/tokenizer.model")
MAX_COMPANION_BYTES = 64 * 2**20
IMAGES = "observation.images."
STATE, ACTION = "observation.state", "action"
Size = Annotated[int, Field(ge=1, le=2**14)]
MAX_LAYERS = 1024
Mode = Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"]


class _Feature(BaseModel):
    type: str
    shape: tuple[Size, ...]


class PublishedSettings(NetworkSettings):
    """What counts of config.json. What would change the result and is not computed here must be off."""

    type: Literal["smolvla", "pi0", "pi05"]
    input_features: dict[str, _Feature]
    output_features: dict[str, _Feature]
    chunk_size: Size = 50
    max_state_dim: Size = 32
    max_action_dim: Size = 32
    tokenizer_max_length: Size = 48
    min_period: Positive = 4e-3
    max_period: Positive = 4.0
    num_steps: Size = 10  # of SmolVLA
    num_inference_steps: Size = 10  # of pi0 and pi0.5
    num_vlm_layers: Annotated[int, Field(le=MAX_LAYERS)] = 16
    num_expert_layers: Annotated[int, Field(le=MAX_LAYERS)] = -1
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: Annotated[float, Field(gt=0, le=16)] = 0.75
    resize_imgs_with_padding: tuple[Size, Size] | None = (512, 512)  # width and height
    image_resolution: tuple[Size, Size] = (224, 224)  # height and width
    attention_mode: Literal["cross_attn"] = "cross_attn"
    add_image_special_tokens: Literal[False] = False
    adapt_to_pi_aloha: Literal[False] = False
    use_delta_joint_actions_aloha: Literal[False] = False
    use_relative_actions: Literal[False] = False

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images, as config.json orders them."""
        return tuple(name for name, feature in self.input_features.items() if feature.type == "VISUAL")

    @property
    def state_dim(self) -> int:
        feature = self.input_features.get(STATE)
        return min(feature.shape[0], self.max_state_dim) if feature and feature.shape else self.max_state_dim

    @property
    def action_dim(self) -> int:
        """Raises UserError where there is no action."""
        feature = self.output_features.get(ACTION)
        if feature is None or len(feature.shape) != 1 or feature.shape[0] > self.max_action_dim:
            raise UserError(
                f"{CONFIG}: output_features has no {ACTION!r} of 1 to max_action_dim={self.max_action_dim} dimensions"
            )
        return feature.shape[0]


class Scaling(NamedTuple):
    """What a vector is normalised by: (x - offset) / divisor, and back x * multiplier + offset; None: not at all."""

    offset: Tensor
    divisor: Tensor
    multiplier: Tensor

    def forth(self, values: Tensor) -> Tensor:
        return (values - self.offset.to(values.device)) / self.divisor.to(values.device)

    def back(self, values: Tensor) -> Tensor:
        return values * self.multiplier.to(values.device) + self.offset.to(values.device)


class PublishedFolder(NamedTuple):
    settings: PublishedSettings
    files: dict[str, bytes]  # the small ones, by their names in the folder
    before: dict[str, Scaling]  # of the state, where it is normalised
    after: dict[str, Scaling]  # of the action


# -- reading -----------------------------------------------------------------------------------------------------


def read_folder(folder: Path, vlm: str = "") -> PublishedFolder:
    """What stands beside the weights; `vlm`: a folder with what `vlm/` lacks.

    Raises UserError for a folder that is damaged, that asks for what is not computed here, or is of an older layout.
    """
    check_folder(folder)
    settings = read_settings(folder / CONFIG, PublishedSettings)
    if not (folder / BEFORE).exists():
        raise UserError(
            f"{folder} has no {BEFORE}, so that it does not say how state and actions are normalised; lerobot's "
            "migrate_policy_normalization writes it for folders of older versions"
        )
    files = {name: read_bytes(folder / name, MAX_SETTINGS_BYTES) for name in (CONFIG, BEFORE, AFTER)}
    for name in (TOKENIZER, VLM_CONFIG, *UNREAD):
        places = [folder / name, *([Path(vlm) / name.removeprefix(f"{VLM}/")] if vlm else [])]
        if path := next((path for path in places if path.is_file()), None):
            files[name] = read_bytes(path, MAX_COMPANION_BYTES)
    before = _scalings(folder, BEFORE, "normalizer_processor", files)
    after = _scalings(folder, AFTER, "unnormalizer_processor", files)
    _check_sizes(folder, settings, before, after)
    return PublishedFolder(settings, files, before, after)


class _Step(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    registry_name: str
    config: dict[str, Any] = {}
    state_file: str | None = None


class _Pipeline(BaseModel):
    steps: list[_Step]


class _Normalizer(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    norm_map: dict[str, Mode]
    features: dict[str, _Feature]


# Steps that are done here, or change nothing; the others would have to be.
KNOWN_STEPS = (
    "rename_observations_processor",
    "to_batch_processor",
    "smolvla_new_line_processor",
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "tokenizer_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
)
SWITCHED_STEPS = ("relative_actions_processor", "absolute_actions_processor", "delta_actions_processor")


def _scalings(folder: Path, name: str, registered: str, files: dict[str, bytes]) -> dict[str, Scaling]:
    """Those of the step called `registered`; adds its statistics to `files`."""
    where = str(folder / name)
    content = parse_json(files[name], where)
    found: dict[str, Scaling] = {}
    try:
        for step in _Pipeline.model_validate(content).steps:
            if step.registry_name in SWITCHED_STEPS and step.config.get("enabled") is False:
                continue
            if step.registry_name not in KNOWN_STEPS:
                raise UserError(f"{where}: the step {shown(step.registry_name)} is not done here")
            if step.state_file is not None:
                path = inside(folder, step.state_file, where)
                tensor_specs(path)
                files[step.state_file] = read_bytes(path, MAX_SETTINGS_BYTES)
            if step.registry_name == registered and step.state_file is not None:
                found = _of_step(_Normalizer.model_validate(step.config), files[step.state_file], step.state_file)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is damaged: {key} = {shown(first['input'])}: {first['msg']}") from None
    return found


def _of_step(step: _Normalizer, statistics: bytes, where: str) -> dict[str, Scaling]:
    from safetensors.torch import load

    tensors = load(statistics)
    found = {}
    for name in (STATE, ACTION):
        feature = step.features.get(name)
        mode = step.norm_map.get(feature.type, "IDENTITY") if feature else "IDENTITY"
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        # Without statistics lerobot leaves a vector as it is.
        if mode != "IDENTITY" and own:
            found[name] = _scaling(mode, own, step.eps, f"{where}: {name}")
    return found


BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


def _scaling(mode: Mode, statistics: Mapping[str, Tensor], eps: float, where: str) -> Scaling:
    """As lerobot's NormalizerProcessorStep computes: bounds become -1 and 1."""
    names = BOUNDS.get(mode, ("mean", "std"))
    pair = []
    for name in names:
        if (value := statistics.get(name)) is None or value.dim() != 1 or not all_finite(value):
            raise UserError(f"{where} has no finite vector {name!r}, which {mode} needs")
        pair.append(value.float())
    low, high = pair
    if low.shape != high.shape or (mode == "MEAN_STD" and bool((high < 0).any())):
        raise UserError(
            f"{where}: {names[0]} {tuple(low.shape)} and {names[1]} {tuple(high.shape)} make no sense together"
        )
    if mode == "MEAN_STD":
        return Scaling(low, high + eps, high)
    half = torch.where(high == low, torch.full_like(low, eps), high - low) / 2
    return Scaling(low + half, half, half)


def _check_sizes(
    folder: Path, settings: PublishedSettings, before: Mapping[str, Scaling], after: Mapping[str, Scaling]
) -> None:
    if not settings.cameras:
        raise UserError(f"{folder / CONFIG}: input_features has no image")
    for where, found, name, size in (
        (BEFORE, before, STATE, settings.max_state_dim),
        (AFTER, after, ACTION, settings.action_dim),
    ):
        num = len(found[name].offset) if name in found else 0
        if num > size or (name == ACTION and num not in (0, size)):
            raise UserError(f"{folder / where}: the statistics of {name} have {num} dimensions, {CONFIG} says {size}")
