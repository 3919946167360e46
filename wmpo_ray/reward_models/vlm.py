"""A vision-language model as a reward model: it is shown a few frames of a window and asked whether the task is done."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import atomic_directory
from wmpo_ray.core.types import Scores
from wmpo_ray.core.untrusted import read_settings
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.reward_models.equal_batches import in_equal_batches
from wmpo_ray.reward_models.vlm_files import VlmFiles, files_to_keep, load_vlm
from wmpo_ray.reward_models.vlm_settings import INSTRUCTION, VlmRewardConfig

SETTINGS_FILE = "reward_model.json"


class _FileSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["vlm"]
    threshold: FiniteFloat
    slope: Annotated[FiniteFloat, Field(ge=0)]
    offset: FiniteFloat
    clip_length: Annotated[int, Field(ge=1, le=2**16)]


class VlmRewardModel:
    """Probability that the task is done at the end of a window (implements `interfaces.RewardModel`).

    Of the next token after the prompt, p(yes) / (p(yes) + p(no)) over the words for each, whose logit is scaled: sigmoid
    of slope * logit + offset (Platt 1999). The text of a prompt and the size of frames are the same throughout a batch.
    """

    def __init__(self, files: VlmFiles, folder: Path, config: VlmRewardConfig):
        self.network: Any = files.network
        self.processor, self._folder, self._config = files.processor, folder, config
        self.clip_length, self.threshold = config.clip_length, 0.5
        self.slope, self.offset = 1.0, 0.0
        self._yes, self._no = self._tokens_of_answers()
        parameters = inspect.signature(self.network.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @classmethod
    def load(cls, path: str | Path, config: VlmRewardConfig) -> VlmRewardModel:
        """A folder of transformers' own, or one that `save` wrote, with its threshold and scale.

        Raises UserError for anything else.
        """
        folder = Path(path)
        model = cls(load_vlm(folder, getattr(torch, config.compute_dtype)), folder, config)
        if (folder / SETTINGS_FILE).exists():
            saved = read_settings(folder / SETTINGS_FILE, _FileSettings)
            model.threshold, model.slope, model.offset = saved.threshold, saved.slope, saved.offset
            model.clip_length = saved.clip_length
        return model

    def shown_frames(self) -> np.ndarray:
        """Places [n] in a window of the frames that are shown: at equal distances, the last one among them."""
        step = self.clip_length / self._config.num_frames
        return np.round(self.clip_length - 1 - step * np.arange(self._config.num_frames)[::-1]).astype(int)

    def prompt(self, instruction: str) -> str:
        """The text that a window is shown with, as the model's own template has it, or else with the pictures first."""
        text = self._config.prompt.replace(INSTRUCTION, instruction)
        if self.processor.chat_template or getattr(self.processor.tokenizer, "chat_template", None):
            content = [{"type": "image"}] * self._config.num_frames + [{"type": "text", "text": text}]
            chat = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        picture = getattr(self.processor, "image_token", None)
        if picture is None:
            raise UserError(f"{self._folder}: the processor has neither a chat template nor a token for pictures")
        return f"{picture}" * self._config.num_frames + f"\n{text}"

    @torch.no_grad()
    def log_odds(self, frames: Tensor, instructions: Sequence[str]) -> Tensor:
        """Logarithm of p(yes) / p(no) [B] float32 of shown frames [B, n, H, W, 3] uint8, all with one instruction."""
        assert len(set(instructions)) == 1, "texts of one length need no padding"
        pictures = [[Image.fromarray(frame) for frame in row] for row in frames.cpu().numpy()]
        texts = [self.prompt(instructions[0])] * len(pictures)
        inputs = self.processor(images=pictures, text=texts, return_tensors="pt").to(self.network.device)
        inputs = {k: v.to(self.network.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        logits = self.network(**inputs, **self._last_only).logits[:, -1].float()
        return logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)

    def clip_log_odds(self, clips: Tensor, instructions: Sequence[str]) -> np.ndarray:
        """The same [B] float64 of whole windows [B, L, H, W, 3] uint8, each with an instruction of its own.

        What a window is given does not depend on what is judged beside it.
        """
        found, texts = np.zeros(len(clips)), np.array(instructions, object)
        chosen = clips[:, self.shown_frames().tolist()]
        for text in dict.fromkeys(instructions):
            rows = np.flatnonzero(texts == text)
            part = in_equal_batches(self.log_odds, chosen[rows], [text] * len(rows), self._config.windows_per_batch)
            found[rows] = part.double().cpu().numpy()
        return found

    def probabilities(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """videos [M, T+1, H, W, 3] -> probability [M, W] of each window of L frames, stride 1, W = T + 2 - L."""
        windows = torch.as_tensor(np.asarray(videos)).unfold(1, self.clip_length, 1).movedim(-1, 2)
        num_videos, num_windows = windows.shape[:2]
        texts = [text for text in instructions for _ in range(num_windows)]
        odds = self.clip_log_odds(windows.flatten(0, 1), texts)
        scaled = 1 / (1 + np.exp(-np.clip(self.slope * odds + self.offset, -80, 80)))
        return scaled.astype(np.float32).reshape(num_videos, num_windows)

    def decide(self, probabilities: np.ndarray, min_steps: int, horizon: int) -> Scores:
        return decide(probabilities, self.threshold, self.clip_length, max(min_steps, 1), horizon)

    def save(self, path: str | Path) -> None:
        """The files of the model as they were read, and beside them what was chosen for it."""
        path = Path(path)
        is_own = path.exists() and path.samefile(self._folder)  # of a run; what is outside may be written over one day
        settings = {"kind": "vlm", "threshold": self.threshold, "slope": self.slope, "offset": self.offset}
        with atomic_directory(path) as folder:
            for file in files_to_keep(self._folder):
                if file.name != SETTINGS_FILE:
                    (os.link if is_own else shutil.copyfile)(file, folder / file.name)
            text = json.dumps(settings | {"clip_length": self.clip_length}, indent=1)
            (folder / SETTINGS_FILE).write_text(text + "\n")

    def _tokens_of_answers(self) -> tuple[list[int], list[int]]:
        """The first tokens of the words for yes and for no, with and without a space before them."""
        encode = self.processor.tokenizer.encode
        unknown = self.processor.tokenizer.unk_token_id
        yes, no = (
            {encode(space + word, add_special_tokens=False)[0] for word in words for space in ("", " ")} - {unknown}
            for words in (self._config.yes, self._config.no)
        )
        if not yes - no or not no - yes:
            raise UserError(
                f"{self._folder}: its tokenizer does not tell {self._config.yes[0]!r} from {self._config.no[0]!r}; set "
                "reward.yes and reward.no"
            )
        return sorted(yes - no), sorted(no - yes)
