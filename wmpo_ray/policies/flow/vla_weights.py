"""The weights of published flow policies: which network they are, how they get into it, and how they are written again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmpo_ray.core.errors import UserError, short
from wmpo_ray.core.section import shown
from wmpo_ray.core.untrusted import FORBIDDEN_KEYS, parse_json
from wmpo_ray.model_files.weight_files import WeightFiles, find_safetensors, load_network
from wmpo_ray.policies.flow.pi import EMBEDDING, EXPERT_HEAD, READER_HEAD, PiNetwork, PiSettings, PiSizes
from wmpo_ray.policies.flow.published import CONFIG, MAX_LAYERS, VLM_CONFIG, PublishedFolder, PublishedSettings
from wmpo_ray.policies.flow.smolvla import SmolVLANetwork, SmolVLASettings, SmolVLMConfig

Network = SmolVLANetwork | PiNetwork
PREFIX = "model."  # of the published names; older folders of pi0 are without
STEM = "model"


def load_weights(path: Path, folder: PublishedFolder, device: torch.device | str = "cpu") -> Network:
    """The network of a folder in float32, in evaluation mode. Raises UserError where the weights are not its own."""
    files, build = network_of(path, folder)
    network = load_network(files, build, names=published_names, ignored=is_output_layer, device=device)
    # A buffer that is in no file has no values yet.
    for module in network.modules():
        if isinstance(positions := getattr(module, "position_ids", None), Tensor):
            positions.copy_(torch.arange(positions.shape[-1], device=positions.device).expand_as(positions))
    return network


def network_of(path: Path, folder: PublishedFolder) -> tuple[WeightFiles, Callable[[], Network]]:
    """The files of a folder's weights, and what makes its network. Raises UserError where the sizes are not known."""
    files, settings = find_safetensors(path, STEM), folder.settings
    if settings.type == "smolvla":
        vlm = read_vlm(folder, str(path))
        return files, lambda: smolvla_network(settings, vlm)
    sizes = pi_sizes(files)
    if settings.image_resolution != (side := sizes.image_size, side):
        seen = shown(list(settings.image_resolution))
        raise UserError(f"{path / CONFIG}: image_resolution = {seen}; the weights are made for [{side}, {side}]")
    return files, lambda: pi_network(settings, sizes)


def published_names(name: str) -> tuple[str, ...]:
    """The names that a tensor of a network may have in a file, the first one found counts."""
    own = (name, READER_HEAD) if name == EMBEDDING else (name,)
    return tuple(prefix + candidate for candidate in own for prefix in (PREFIX, ""))


def is_output_layer(name: str) -> bool:
    """Whether nothing is computed with a published tensor of pi0."""
    return name.removeprefix(PREFIX) in (READER_HEAD, EXPERT_HEAD)


def published_state(network: Network) -> Iterator[tuple[str, Tensor]]:
    """What a published file holds, by name: the two output layers of pi0 are the embedding, and zeros."""
    for name, tensor in network.state_dict().items():
        yield name, tensor.detach().cpu().contiguous()
    if isinstance(network, PiNetwork):
        embedding = network.state_dict()[EMBEDDING].detach().cpu()
        yield READER_HEAD, embedding.clone()
        yield EXPERT_HEAD, torch.zeros(len(embedding), network.sizes.expert.width, dtype=embedding.dtype)


def num_words_of(network: Network) -> int:
    if isinstance(network, PiNetwork):
        return network.sizes.vocabulary
    return int(network.vlm_with_expert.text.vocab_size)


# -- the two networks --------------------------------------------------------------------------------------------


def smolvla_network(settings: PublishedSettings, vlm: Mapping[str, Any]) -> SmolVLANetwork:
    """vlm: what `read_vlm` gave."""
    names = SmolVLASettings.model_fields
    return SmolVLANetwork(SmolVLASettings(**{name: getattr(settings, name) for name in names}), vlm)


def pi_network(settings: PublishedSettings, sizes: PiSizes) -> PiNetwork:
    own = {name: getattr(settings, name) for name in PiSettings.model_fields if name != "num_steps"}
    return PiNetwork(PiSettings(**own, num_steps=settings.num_inference_steps), sizes, settings.type == "pi05")


def pi_sizes(files: WeightFiles) -> PiSizes:
    """Raises UserError for weights of something else."""
    shapes = {name.removeprefix(PREFIX): spec.shape for name, spec in files.specs.items()}
    if EMBEDDING not in shapes and READER_HEAD in shapes:
        shapes[EMBEDDING] = shapes[READER_HEAD]
    try:
        return PiSizes.of(shapes)
    except (LookupError, ValueError) as error:
        raise UserError(f"{files.path}: the weights are none of pi0: {error} is missing or has another shape") from None


def read_vlm(folder: PublishedFolder, where: str) -> dict[str, Any]:
    """The config.json of a SmolVLM, without what has a loader fetch or import. Raises UserError where it is none."""
    if VLM_CONFIG not in folder.files:
        raise UserError(
            f"{where} has no {VLM_CONFIG}, which says how large the model is that SmolVLA was built on; set policy.vla.vlm "
            "to a folder with the config.json and the tokenizer.json of that model"
        )
    path = f"{where}/{VLM_CONFIG}"
    content = parse_json(folder.files[VLM_CONFIG], path)
    whole = _checked(content, "smolvlm", path)
    for name, kind in (("text_config", "llama"), ("vision_config", "smolvlm_vision")):
        whole[name] = _checked(whole.get(name), kind, f"{path}, {name}")
    try:
        SmolVLMConfig.from_dict(whole)
    except Exception as error:  # the errors of its checks have no class in common
        raise UserError(f"{path} is damaged: {short(error)}") from error
    return whole


def _checked(content: Any, kind: str, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where} is damaged: it holds no settings")
    if content.get("model_type", kind) != kind:
        raise UserError(f"{where}: model_type = {shown(content['model_type'])}; that of SmolVLA is {kind!r}")
    num = content.get("num_hidden_layers", 1)
    if not isinstance(num, int) or not 1 <= num <= MAX_LAYERS:
        raise UserError(f"{where}: num_hidden_layers = {shown(num)}; it must be from 1 to {MAX_LAYERS}")
    if not isinstance(heads := content.get("num_attention_heads", 1), int) or heads < 1:
        raise UserError(f"{where}: num_attention_heads = {shown(heads)}; it must be 1 or more")
    return {key: value for key, value in content.items() if key not in FORBIDDEN_KEYS}
