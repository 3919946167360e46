"""SmolVLA, pi0 and pi0.5 against lerobot's own classes at small sizes, from folders that lerobot saved.

The names and shapes of the weights as they are saved here; a call of the network: its loss and a sampled chunk; and a
decision of the whole policy, from pictures, state and instruction to actions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.untrusted import read_json, tensor_specs
from wmpo_ray.parity.case import ParityCase
from wmpo_ray.parity.fixture_files import compared, fixture_tensors
from wmpo_ray.policies.flow.denoising import noised
from wmpo_ray.policies.flow.expert_attention import Reading
from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy, Use
from wmpo_ray.policies.flow.vla_weights import PREFIX, published_state

TOLERANCE = 1e-4  # of losses up to some sixty
GIVEN = ("words", "word_mask", "actions", "noise", "time")


def check(folder: Path) -> list[ParityCase]:
    """Raises UserError for files that are missing or damaged."""
    policy, cameras, instructions = _policy(folder)
    name = policy.folder.settings.type
    given = fixture_tensors(folder / "forward.safetensors", *GIVEN, "losses", "chunk")
    with torch.no_grad():
        reading = _reading(policy, given)
        states, velocity = noised(given["actions"], given["noise"], given["time"])
        losses = (policy.model.velocity(states, given["time"], reading) - velocity) ** 2
        chunk = policy.model.sample(given["noise"], reading)
        seen = fixture_tensors(folder / "decision.safetensors", "state", "noise", "decision")
        images = {camera: seen[f"frames_{camera}"].numpy() for camera in cameras}
        decision = policy.decided(Observation(images, instructions, seen["state"].numpy()), seen["noise"])
    return [
        ParityCase(name, "names and shapes", float(len(differing_tensors(policy, folder))), 0.0),
        compared(name, "losses", losses, given["losses"], TOLERANCE),
        compared(name, "chunk", chunk, given["chunk"], TOLERANCE),
        compared(name, "decision", decision, seen["decision"], TOLERANCE),
    ]


def differing_tensors(policy: PublishedFlowPolicy, folder: Path) -> list[str]:
    """A line for each tensor that a saved policy would lack, have in addition, or have in another shape."""
    published = {name: tuple(spec.shape) for name, spec in tensor_specs(folder / "model.safetensors").items()}
    ours = {PREFIX + name: tuple(tensor.shape) for name, tensor in published_state(policy.model)}
    return [
        f"{name}: {ours.get(name, 'not ours')}, published {published.get(name, 'not')}"
        for name in sorted(ours.keys() | published.keys())
        if ours.get(name) != published.get(name)
    ]


def _policy(folder: Path) -> tuple[PublishedFlowPolicy, tuple[str, ...], tuple[str, ...]]:
    """The policy, with all of its cameras and as many steps as config.json says; cameras and instructions of the case."""
    case: Any = read_json(folder / "case.json")
    try:
        cameras, instructions = tuple(map(str, case["cameras"])), tuple(map(str, case["instructions"]))
    except (LookupError, TypeError) as error:
        raise UserError(f"{folder / 'case.json'} is no case of a flow policy: {error!r}") from error
    return PublishedFlowPolicy.load(folder, Use(1, cameras, observes_state=True)), cameras, instructions


def _reading(policy: PublishedFlowPolicy, given: dict[str, Tensor]) -> Reading:
    cameras = sorted(name.removeprefix("image_") for name in given if name.startswith("image_") and "mask" not in name)
    return policy.model.read(
        [given[f"image_{camera}"] for camera in cameras],
        [given[f"image_mask_{camera}"] for camera in cameras],
        given["words"],
        given["word_mask"],
        given.get("state"),
    )
