"""What a published flow policy is given: pictures of one size, words as token ids, and the robot's state.

As lerobot prepares them: pictures are resized without distortion and padded with black, SmolVLA's to the left and above
and pi0's on both sides, then brought to [-1, 1]. pi0.5 reads its state in the instruction, as whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.observations import MAIN_CAMERA, Observation
from wmpo_ray.policies.flow.published import STATE, TOKENIZER, PublishedFolder, PublishedSettings
from wmpo_ray.policies.openvla.prompt import json_encoder

STATE_BINS = 256
PADDING = 0


class PolicyInputs:
    """Observations as the network takes them."""

    def __init__(self, folder: PublishedFolder, cameras: tuple[str, ...], observes_state: bool, num_words: int):
        """As in `Use`; num_words: rows of the embedding of words. Raises ConfigError for more cameras than images."""
        self._settings, self._scaling = folder.settings, folder.before.get(STATE)
        if len(cameras) > len(self._settings.cameras):
            raise ConfigError(
                f"policy.vla.cameras={list(cameras)}: the policy sees {len(self._settings.cameras)} images, "
                f"{list(self._settings.cameras)}; name at most so many cameras"
            )
        self._cameras = tuple(name for name in cameras or (MAIN_CAMERA,) if name)
        self._observes_state = observes_state
        tokenizer = folder.files.get(TOKENIZER)
        self._words = None if tokenizer is None else Words(tokenizer, self._settings, num_words)

    def of(self, observation: Observation, device: torch.device) -> dict[str, Tensor]:
        """images [B, cameras, 3, h, w] in [-1, 1], words and word_mask [B, n], state [B, max_state_dim].

        Raises UserError for what the observation or the folder lacks.
        """
        if self._words is None:
            raise UserError(
                f"this policy's folder has no {TOKENIZER}, so it can read no instruction; set policy.vla.vlm to the folder "
                "of the model that it was built on"
            )
        state = self._state(observation)
        words, mask = self._words.batch(observation.instructions, state)
        images = [
            prepared_images(torch.as_tensor(self._frames(observation, name)).to(device), self._settings)
            for name in self._cameras
        ]
        return {
            "images": torch.stack(images, 1),
            "words": words.to(device),
            "word_mask": mask.to(device),
            "state": F.pad(state, (0, self._settings.max_state_dim - state.shape[1])).to(device),
        }

    def _frames(self, observation: Observation, camera: str) -> np.ndarray:
        if camera == MAIN_CAMERA:
            return observation.frames
        if camera not in observation.images:
            raise UserError(
                f"policy.vla.cameras names {camera!r}, and what is seen has the cameras {list(observation.images)}; a world "
                f"model imagines the main one alone, which is always {MAIN_CAMERA!r}"
            )
        return observation.images[camera]

    def _state(self, observation: Observation) -> Tensor:
        """Normalised [B, S]; that of zeros where the policy is not to observe any."""
        if not self._observes_state:
            return torch.zeros(len(observation), self._settings.state_dim)
        size = self._settings.state_dim if self._scaling is None else len(self._scaling.offset)
        found = None if observation.state is None else observation.state.shape[-1]
        if observation.state is None or found != size:
            raise UserError(
                f"policy.vla.observes_state=true: the policy reads a state of {size} values, and what is seen has "
                f"{'none' if found is None else found}; set policy.vla.observes_state to false"
            )
        state = torch.as_tensor(observation.state).float()
        return state if self._scaling is None else self._scaling.forth(state)


def prepared_images(frames: Tensor, settings: PublishedSettings) -> Tensor:
    """Frames [B, H, W, 3] uint8 -> [B, 3, h, w] float32 in [-1, 1]."""
    images = frames.permute(0, 3, 1, 2).float() / 255
    if settings.type != "smolvla":
        return _padded(images, *settings.image_resolution, centred=True) * 2 - 1
    if settings.resize_imgs_with_padding is not None:
        width, height = settings.resize_imgs_with_padding
        images = _padded(images, height, width, centred=False)
    return images * 2 - 1


def _padded(images: Tensor, height: int, width: int, centred: bool) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> [B, 3, height, width]: in the middle, or at the right and below."""
    if images.shape[2:] == (height, width):
        return images
    ratio = max(images.shape[3] / width, images.shape[2] / height)
    size = (int(images.shape[2] / ratio), int(images.shape[3] / ratio))
    if min(size) < 1:
        raise UserError(f"frames of {images.shape[2]} x {images.shape[3]} pixels leave nothing at {height} x {width}")
    images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    above, before = height - size[0], width - size[1]
    if centred:
        above, before = above // 2, before // 2
    return F.pad(images, (before, width - size[1] - before, above, height - size[0] - above))


class Words:
    """Instructions as ids of one length, which is that of config.json: a row does not depend on the others."""

    def __init__(self, tokenizer: bytes, settings: PublishedSettings, num_words: int):
        """num_words: rows of the embedding. Raises UserError for a tokenizer that is damaged."""
        self._encode: Callable[[str], list[int]] = json_encoder(tokenizer)
        self._settings, self._num_words = settings, num_words

    def batch(self, instructions: Sequence[str], state: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [B, n] int64, padded on the right, and their mask [B, n] bool; state [B, S] normalised, which pi0.5 reads.

        Raises UserError for an id beyond the embedding.
        """
        length = self._settings.tokenizer_max_length
        ids = torch.full((len(instructions), length), PADDING)
        mask = torch.zeros(len(instructions), length, dtype=torch.bool)
        for row, text in enumerate(instructions):
            prompt = self._encode(self._prompt(text, state[row]))[:length]
            if prompt and max(prompt) >= self._num_words:
                raise UserError(
                    f"{TOKENIZER} gives id {max(prompt)} and the policy has embeddings for {self._num_words}: the two do "
                    "not belong together"
                )
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
            mask[row, : len(prompt)] = True
        return ids, mask

    def _prompt(self, text: str, state: Tensor) -> str:
        if self._settings.type != "pi05":
            return text if text.endswith("\n") else f"{text}\n"
        cleaned = text.strip().replace("_", " ").replace("\n", " ")
        return f"Task: {cleaned}, State: {' '.join(map(str, state_bins(state)))};\nAction: "


def state_bins(state: Tensor) -> list[int]:
    """Which of the 256 equal parts of [-1, 1] each value is in, counted from 0; -1 below, 255 above."""
    edges = torch.linspace(-1, 1, STATE_BINS + 1, dtype=torch.float64)[:-1]
    return (torch.bucketize(state.double().cpu(), edges, right=True) - 1).tolist()
