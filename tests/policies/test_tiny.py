"""The small policy: its protocol, its tokens, its files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmpo_ray.core.observations import Observation
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.action_tokens import decode_tokens, encode_actions, sample_tokens
from wmpo_ray.policies.tiny import TinyPolicy, TinyPolicyHFConfig, vocabulary_of


@pytest.fixture(scope="module")
def policy() -> TinyPolicy:
    torch.manual_seed(0)
    config = TinyPolicyHFConfig(
        width=32, num_layers=1, num_heads=2, patch_size=8, vocabulary=vocabulary_of(INSTRUCTIONS)
    )
    return TinyPolicy(config).eval()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)


@given(st.floats(-1, 1), st.integers(2, 300))
def test_a_token_is_at_most_half_a_bin_from_its_action(action, bins):
    token = encode_actions(torch.tensor([action]), bins)
    assert 0 <= int(token) < bins
    assert abs(float(decode_tokens(token, bins)) - action) <= 1 / bins + 1e-5


@given(st.integers(2, 300), st.data())
def test_tokens_survive_decoding_and_encoding(bins, data):
    token = torch.tensor([data.draw(st.integers(0, bins - 1))])
    assert torch.equal(encode_actions(decode_tokens(token, bins), bins), token)


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20_000, 1, 3)
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample_tokens(logits, 2.0, uniform)
    expected = torch.softmax(torch.tensor([0.0, 0.5, 1.0]), 0)
    observed = torch.bincount(tokens.flatten(), minlength=3) / len(tokens)
    torch.testing.assert_close(observed, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(logprobs.exp()[:, 0], expected[tokens[:, 0]])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_sampling_never_leaves_the_range(uniform):
    tokens, _ = sample_tokens(torch.randn(5, 2, 7), 1.0, torch.full((5, 2), uniform))
    assert int(tokens.min()) >= 0 and int(tokens.max()) <= 6


def test_act_and_log_prob_agree(policy, frames):
    texts = [INSTRUCTIONS[i % 2] for i in range(6)]
    chunk = policy.act(Observation.of(frames, texts), 1.6, list(range(6)))
    assert chunk.record["tokens"].shape == (6, 12) and chunk.actions.shape == (6, 4, 3)
    assert chunk.actions.abs().max() <= 1
    again = policy.log_prob(Observation.of(frames, texts), chunk.record, 1.6)
    torch.testing.assert_close(again.detach(), chunk.logprobs, atol=1e-5, rtol=0)


def test_a_member_acts_the_same_in_any_batch(policy, frames):
    texts = [INSTRUCTIONS[0]] * 6
    together = policy.act(Observation.of(frames, texts), 1.0, list(range(6)))
    alone = policy.act(Observation.of(frames[2:3], texts[:1]), 1.0, [2])
    assert torch.equal(together.record["tokens"][2], alone.record["tokens"][0])


def test_temperature_zero_takes_the_likeliest(policy, frames):
    texts = [INSTRUCTIONS[0]] * 6
    one, other = (policy.act(Observation.of(frames, texts), 0.0, seeds) for seeds in ([0] * 6, [1] * 6))
    assert torch.equal(one.record["tokens"], other.record["tokens"])


def test_the_instruction_is_read(policy, frames):
    blue, pink = (
        policy.log_prob(Observation.of(frames, [text] * 6), {"tokens": torch.zeros(6, 12, dtype=torch.long)}, 1.0)
        for text in INSTRUCTIONS
    )
    assert not torch.allclose(blue, pink)


def test_saved_and_loaded_it_is_the_same(policy, frames, tmp_path):
    policy.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")), "weights are safetensors, never pickles"
    loaded = TinyPolicy.load(tmp_path)
    texts = [INSTRUCTIONS[1]] * 6
    one, other = (p.act(Observation.of(frames, texts), 1.0, list(range(6))) for p in (policy, loaded))
    assert torch.equal(one.record["tokens"], other.record["tokens"]) and torch.equal(one.logprobs, other.logprobs)
