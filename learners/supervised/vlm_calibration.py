"""Scales the probability that a vision-language model gives, on clips with known outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from learners.supervised.reward_training import clips_to_learn
from wmpo_ray.core.seeding import generator_for
from wmpo_ray.core.types import Episodes
from wmpo_ray.data.windows import frames_at
from wmpo_ray.reward_models.vlm_settings import VlmRewardConfig

if TYPE_CHECKING:
    from wmpo_ray.reward_models.vlm import VlmRewardModel


def calibrate(model: VlmRewardModel, config: VlmRewardConfig, episodes: Episodes, seed: int) -> dict[str, float]:
    """Set slope and offset of the model in place; returns them, the number of clips, and their mean log-odds.

    Half of the clips are successes as far as there are so many, as in a training. Raises UserError if there are only
    positive or only negative ones.
    """
    clips, generator = clips_to_learn(config, episodes), generator_for(seed, "reward")
    half = max(1, config.calibration_clips // 2)
    rows = [index[torch.randperm(len(index), generator=generator)[:half]] for index in (clips.positive, clips.negative)]
    labels = np.repeat([True, False], [len(part) for part in rows])
    index = torch.cat(rows)
    frames = frames_at(episodes.frames, index[:, :1], index[:, 1:] + torch.arange(1 - model.clip_length, 1))
    odds = model.clip_log_odds(frames, [episodes.instructions[i] for i in index[:, 0].tolist()])
    model.slope, model.offset = fit_scale(odds, labels)
    means = {"success_log_odds": odds[labels].mean(), "failure_log_odds": odds[~labels].mean()}
    found = {"calibration_slope": model.slope, "calibration_offset": model.offset, "calibration_clips": len(labels)}
    return found | {name: float(mean) for name, mean in means.items()}


def fit_scale(log_odds: np.ndarray, success: np.ndarray) -> tuple[float, float]:
    """Slope >= 0 and offset of the sigmoid that fits outcomes [n] best, with Platt's targets.

    Platt 1999, Probabilistic outputs for support vector machines, section 2.2: not 1 and 0 but (P + 1) / (P + 2) and
    1 / (N + 2) of P successes and N failures. A slope of 0 means that the answers say nothing of the outcome, or the
    opposite, which a better prompt may change and a negative slope would only hide.
    """
    from scipy.optimize import minimize

    scale = float(np.abs(log_odds).max()) or 1.0
    x, num = log_odds / scale, int(success.sum())
    target = np.where(success, (num + 1) / (num + 2), 1 / (len(success) - num + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        error = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target
        return float((np.logaddexp(0, z) - target * z).mean()), np.array([(error * x).mean(), error.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0, None), (None, None)], method="L-BFGS-B").x
    return float(found[0]) / scale, float(found[1])
