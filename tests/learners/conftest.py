"""A small policy in a folder, as learners begin with."""

from __future__ import annotations

import pytest
import torch

from tests.support.small_run import small_config
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    settings = small_config().policy.network.model_dump()
    TinyPolicy(TinyPolicyHFConfig(**settings, vocabulary=vocabulary_of(INSTRUCTIONS))).save_pretrained(folder)
    return str(folder)
