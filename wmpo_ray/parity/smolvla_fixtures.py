"""SmolVLA against lerobot's own class at small sizes: names and shapes of the weights, the loss, and a sampled chunk."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.untrusted import tensor_specs
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, fixture_tensors, read_config
from wmpo_ray.policies.flow.denoising import noised
from wmpo_ray.policies.flow.smolvla import Reading, SmolVLANetwork, SmolVLASettings

TOLERANCE = 1e-4  # of losses up to some sixty
PREFIX = "model."  # of the published names
GIVEN = ("words", "word_mask", "state", "actions", "noise", "time")


def check(folder: Path) -> list[ParityCase]:
    """Raises UserError for files that are missing or damaged."""
    network, mismatches = load_fixture(folder)
    cases = [ParityCase("smolvla", "names and shapes", float(len(mismatches)), 0.0)]
    if mismatches:
        return cases
    given = fixture_tensors(folder / "forward.safetensors", *GIVEN, "losses", "chunk")
    with torch.no_grad():
        reading = _reading(network, given)
        states, velocity = noised(given["actions"], given["noise"], given["time"])
        losses = (network.velocity(states, given["time"], reading) - velocity) ** 2
        chunk = network.sample(given["noise"], reading)
    cases.append(compared("smolvla", "losses", losses, given["losses"], TOLERANCE))
    cases.append(compared("smolvla", "chunk", chunk, given["chunk"], TOLERANCE))
    return cases


def load_fixture(folder: Path) -> tuple[SmolVLANetwork, list[str]]:
    """The network of a fixture, and a line for each tensor that is missing, foreign or of another shape."""
    config = read_config(folder)
    try:
        settings = SmolVLASettings.model_validate(config["policy"])
        with torch.random.fork_rng(devices=[]):
            network = SmolVLANetwork(settings, config["vlm"]).eval()
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise UserError(f"{folder / 'config.json'} is no config of a SmolVLA fixture: {reason}") from error
    path = folder / "model.safetensors"
    published = {name: tuple(spec.shape) for name, spec in tensor_specs(path).items()}
    ours = {PREFIX + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    mismatches = [
        f"{name}: {ours.get(name, 'not ours')}, published {published.get(name, 'not')}"
        for name in sorted(ours.keys() | published.keys())
        if ours.get(name) != published.get(name)
    ]
    if not mismatches:
        network.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()})
    return network, mismatches


def _reading(network: SmolVLANetwork, given: dict[str, Tensor]) -> Reading:
    cameras = sorted(name.removeprefix("image_") for name in given if name.startswith("image_") and "mask" not in name)
    return network.read(
        [given[f"image_{camera}"] for camera in cameras],
        [given[f"image_mask_{camera}"] for camera in cameras],
        given["words"],
        given["word_mask"],
        given["state"],
    )
