"""config.json of an OpenVLA-OFT folder: the published keys, and the few that are ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import LlamaConfig, PretrainedConfig

from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.section import Count, Positive, shown
from wmpo_ray.core.untrusted import FORBIDDEN_KEYS, MAX_SETTINGS_BYTES, NetworkSettings, read_json, read_settings
from wmpo_ray.policies.openvla.images import ImageSteps
from wmpo_ray.policies.openvla.vision import TowerSizes, tower_sizes

TIMM_MODEL_IDS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
Width = Annotated[int, Field(ge=1, le=2**16)]


class OpenVLAConfig(PretrainedConfig):
    """The published keys keep their names; ours are `timm_overrides` (sizes that differ from the named towers'),
    `num_actions_chunk`, `action_dim`, `unnorm_key`, `image_steps`, `compute_dtype` and `empty_token_id`.
    """

    model_type = "openvla"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    def __init__(
        self,
        text_config: Mapping[str, Any] | LlamaConfig | None = None,
        image_sizes: Sequence[int] = (224, 224),
        timm_model_ids: Sequence[str] = TIMM_MODEL_IDS,
        timm_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        n_action_bins: int = 256,
        pad_to_multiple_of: int = 64,
        norm_stats: Mapping[str, Any] | None = None,
        num_actions_chunk: int = 8,
        action_dim: int = 7,
        unnorm_key: str | None = None,
        image_steps: ImageSteps = "rollout",
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        empty_token_id: int | None = 29871,
        **kwargs: Any,
    ):
        self.text_config = text_config if isinstance(text_config, LlamaConfig) else _llama_config(text_config or {})
        self.image_sizes = list(image_sizes)
        self.timm_model_ids = list(timm_model_ids)
        self.timm_overrides = {name: dict(sizes) for name, sizes in (timm_overrides or {}).items()}
        self.n_action_bins = n_action_bins
        self.pad_to_multiple_of = pad_to_multiple_of
        self.norm_stats = dict(norm_stats or {})
        self.num_actions_chunk = num_actions_chunk
        self.action_dim = action_dim
        self.unnorm_key = unnorm_key
        self.image_steps = image_steps
        self.compute_dtype = compute_dtype
        self.empty_token_id = empty_token_id
        super().__init__(**{"tie_word_embeddings": False, **kwargs})

    @property
    def vocab_size(self) -> int:
        """V, without the rows that only pad the embedding; action ids are the last `n_action_bins` below it."""
        return self.text_config.vocab_size - self.pad_to_multiple_of

    @property
    def towers(self) -> tuple[TowerSizes, TowerSizes]:
        """Raises ValueError for towers that are unknown, or not two."""
        first, second = (
            tower_sizes(name, self.timm_overrides.get(part, {}))
            for name, part in zip(self.timm_model_ids, ("featurizer", "fused_featurizer"), strict=True)
        )
        return first, second


class _TextSettings(BaseModel):
    """What Llama reads of `text_config`; all other keys are dropped, so none of them fetches or imports anything."""

    model_config = ConfigDict(allow_inf_nan=False)
    model_type: Literal["llama"] = "llama"
    vocab_size: Annotated[int, Field(ge=2, le=2**24)] = 32064
    hidden_size: Width = 4096
    intermediate_size: Annotated[int, Field(ge=1, le=2**20)] = 11008
    num_hidden_layers: Count = 32
    num_attention_heads: Width = 32
    num_key_value_heads: Width | None = None
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: Count = 2048
    # Published folders leave it out and were trained with 1e-6, which is not what the Llama 2 files say.
    rms_norm_eps: Positive = 1e-6
    rope_theta: Positive = 10000.0
    rope_scaling: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    pad_token_id: Annotated[int, Field(ge=0)] | None = None

    head_dim: Count | None = None
    pretraining_tp: Literal[1] = 1
    attention_dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    bos_token_id: Literal[1] | None = 1
    eos_token_id: Literal[2] | None = 2

    @model_validator(mode="before")
    @classmethod
    def _read_rope(cls, values: Any) -> Any:
        """`rope_parameters`, as newer versions of transformers write it, or `rope_theta` and `rope_scaling`."""
        if not isinstance(values, dict):
            return values
        said = {key: values[key] for key in ("rope_parameters", "rope_scaling") if isinstance(values.get(key), dict)}
        thetas = {"rope_theta": values["rope_theta"]} if values.get("rope_theta") is not None else {}
        for key, settings in said.items():
            kind = settings.get("rope_type", settings.get("type", "default"))
            if kind != "default":
                raise ValueError(f"{key} has the type {shown(kind)}; OpenVLA's is 'default'")
            known = {"rope_type": kind, "type": kind, "partial_rotary_factor": 1.0}
            for name, value in settings.items():
                if name == "rope_theta":
                    thetas[f"{key}.rope_theta"] = value
                elif value is not None and known.get(name) != value:
                    raise ValueError(f"{key} has {name} = {shown(value)}, which is not read here")
        if len(set(map(str, map(float, thetas.values())))) > 1:
            raise ValueError(f"{' and '.join(thetas)} differ: {list(thetas.values())}")
        rest = {key: value for key, value in values.items() if key not in said}
        return {**rest, "rope_theta": next(iter(thetas.values()), 10000.0)}

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        key_heads = self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % key_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size}, num_attention_heads={self.num_attention_heads} and "
                f"num_key_value_heads={key_heads}: each must be a multiple of the next"
            )
        if self.head_dim not in (None, self.hidden_size // self.num_attention_heads):
            raise ValueError(
                f"head_dim={self.head_dim}: hidden_size={self.hidden_size} over "
                f"num_attention_heads={self.num_attention_heads} is another"
            )
        return self


def _llama_config(values: Mapping[str, Any]) -> LlamaConfig:
    unused = {"model_type", "rope_scaling", "head_dim", "pretraining_tp", "bos_token_id", "eos_token_id"}
    settings = _TextSettings.model_validate(dict(values)).model_dump(exclude=unused)
    theta = settings.pop("rope_theta")
    return LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=False, **settings)


class FileSettings(NetworkSettings):
    """What a config.json may say."""

    text_config: _TextSettings
    image_sizes: tuple[Width, Width] = (224, 224)
    timm_model_ids: tuple[str, str] = TIMM_MODEL_IDS
    timm_override_act_layers: tuple[None, None] | None = None
    timm_overrides: dict[Literal["featurizer", "fused_featurizer"], dict[str, float | int]] | None = None
    image_resize_strategy: Literal["resize-naive"] = "resize-naive"
    use_fused_vision_backbone: Literal[True] | None = None
    n_action_bins: Annotated[int, Field(ge=2, le=2**16)] = 256
    pad_to_multiple_of: Annotated[int, Field(ge=0, le=2**16)] = 64
    norm_stats: dict[str, Any] | None = None
    num_actions_chunk: Annotated[int, Field(ge=1, le=1024)] = 8
    action_dim: Annotated[int, Field(ge=1, le=1024)] = 7
    unnorm_key: str | None = None
    image_steps: ImageSteps = "rollout"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    empty_token_id: Annotated[int, Field(ge=0)] | None = 29871

    @property
    def num_layers_in_all(self) -> int:
        return self.text_config.num_hidden_layers + sum(
            int(sizes["depth"]) for sizes in (self.timm_overrides or {}).values() if "depth" in sizes
        )

    @model_validator(mode="after")
    def _refuse_loading_elsewhere(self) -> Self:
        """As for any folder, but for `auto_map`: the published ones have it, and here it is dropped unread."""
        found = [key for key in FORBIDDEN_KEYS if key != "auto_map" and (self.model_extra or {}).get(key)]
        if found:
            raise ValueError(f"the key {found[0]!r} is not allowed: a model folder holds weights, and runs nothing")
        return self

    @model_validator(mode="after")
    def _check_bins(self) -> Self:
        free = self.text_config.vocab_size - self.pad_to_multiple_of
        if self.n_action_bins >= free:
            raise ValueError(
                f"n_action_bins={self.n_action_bins} action ids do not fit a vocabulary of {free} tokens "
                "(vocab_size - pad_to_multiple_of)"
            )
        return self


def build_config(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> OpenVLAConfig:
    """The config behind a checked config.json, with the caller's `changes` to our own keys.

    Raises ConfigError for a change that is unknown or out of bounds.
    """
    ours = ("num_actions_chunk", "action_dim", "unnorm_key", "image_steps", "compute_dtype", "empty_token_id")
    if unknown := sorted(changes.keys() - set(ours)):
        raise ConfigError(f"{unknown[0]} is no setting of an OpenVLA policy; known are {list(ours)}")
    kept = {key: value for key, value in settings.items() if key not in FORBIDDEN_KEYS}
    try:
        FileSettings.model_validate({**kept, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{key} = {shown(first['input'])}: {first['msg']}") from None
    return OpenVLAConfig(**{**kept, **changes})


def read_config(
    folder: Path, changes: Mapping[str, Any] | None = None, num_tensors: int | None = None
) -> OpenVLAConfig:
    """The config of a folder whose weights are `num_tensors` (None: not known).

    Raises UserError for a damaged config.json and for more layers than that, ConfigError as `build_config` does.
    """
    path = folder / "config.json"
    settings = read_settings(path, FileSettings)
    if num_tensors is not None and settings.num_layers_in_all > num_tensors:
        raise UserError(f"{path} has {settings.num_layers_in_all} layers; the weights are {num_tensors} tensors")
    return build_config(read_json(path, MAX_SETTINGS_BYTES), changes or {})
