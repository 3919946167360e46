"""Adapters on OpenVLA-OFT; most of it needs peft, which is optional."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.support.openvla import small_policy
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.observations import Observation
from wmpo_ray.policies.openvla.lora import add_lora, merged_state
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
TEXTS = ["push the block", "push the block slowly into the blue pocket"]
SEEN = Observation.of(FRAMES, TEXTS)
TOKENS = torch.tensor([[90, 120, 200, 250, 300, 330]] * 2)


def log_prob(policy) -> torch.Tensor:
    return policy.log_prob(SEEN, {"tokens": TOKENS}, 1.0)


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="pip install peft"):
        add_lora(small_policy())


def test_without_adapters_merging_changes_nothing():
    policy = small_policy()
    merged, state = merged_state(policy), policy.state_dict()
    assert merged.keys() == state.keys() and all(torch.equal(merged[name], state[name]) for name in state)


def test_an_adapter_starts_without_effect_and_is_all_that_is_trained():
    pytest.importorskip("peft")
    policy = small_policy()
    before = log_prob(policy).detach()
    add_lora(policy, rank=2)
    torch.testing.assert_close(log_prob(policy).detach(), before)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    log_prob(policy).sum().backward()
    parts = ("language_model", "projector", "vision_backbone.featurizer", "vision_backbone.fused_featurizer")
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all(any(name.startswith(part) for name in reached) for part in parts)


def test_saved_with_adapters_it_has_the_published_names_and_the_trained_behaviour(tmp_path):
    pytest.importorskip("peft")
    policy = small_policy()
    before = log_prob(policy).detach()
    add_lora(policy, rank=2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    taught = log_prob(policy).detach()
    assert not torch.allclose(taught, before, atol=1e-2)
    policy.save_pretrained(tmp_path)
    loaded = OpenVLAOFTPolicy.load(tmp_path)
    assert loaded.state_dict().keys() == small_policy().state_dict().keys()
    torch.testing.assert_close(log_prob(loaded).detach(), taught, atol=1e-3, rtol=1e-3)


def test_ranks_and_targets_that_make_no_adapter_are_named():
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="rank=0"):
        add_lora(small_policy(), rank=0)
    with pytest.raises(ConfigError, match="targets='nothing'"):
        add_lora(small_policy(), targets="nothing")
