"""What is not imported until somebody calls it, and works as ever when somebody does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (
    "wmpo_ray.policies.tiny",
    "wmpo_ray.policies.openvla.oft",
    "wmpo_ray.policies.openvla.vision",
    "wmpo_ray.reward_models.videomae",
    "wmpo_ray.reward_models.published_videomae",
    "wmpo_ray.world_models.diffusion",
)
THEN = """
import sys, numpy as np
late = ("scipy.optimize", "scipy.stats")
assert not set(late) & set(sys.modules), "it was imported all the same"
from transformers.loss.loss_for_object_detection import linear_sum_assignment
assert [side.tolist() for side in linear_sum_assignment(np.array([[2, 1], [1, 3]]))] == [[0, 1], [1, 0]]
from diffusers import FlowMatchEulerDiscreteScheduler
scheduler = FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(4)
assert scheduler.sigmas[0] > scheduler.sigmas[1] > 0
import scipy.stats
from scipy.optimize import minimize
assert scipy.stats.norm.ppf(0.5) == 0.0 and minimize.__module__ == "scipy.optimize._minimize"
assert set(late) <= set(sys.modules)
"""


@pytest.mark.parametrize(
    "modules", [MODULES[:1], MODULES[3:4], MODULES[5:], MODULES], ids=["policy", "reward", "world", "all"]
)
def test_half_of_scipy_is_imported_when_it_is_called_and_not_before(modules):
    program = "".join(f"import {name}\n" for name in modules) + THEN
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_what_is_there_already_stays():
    program = f"import scipy.stats as before\nimport {MODULES[5]}\nimport scipy.stats\nassert scipy.stats is before"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
