"""Attention, its causal mask, head norm and rotary positions."""

import pytest
import torch

from wmpo_ray.world_models.attention import SHORT_SEQUENCE, HeadRMSNorm, RotaryEmbedding, attend


def heads(length: int, seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, length, 8, generator=torch.Generator().manual_seed(seed))


def reference(query, key, value, offset):
    """The definition, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if offset is not None:
        position = torch.arange(key.shape[2])
        scores = scores.masked_fill(position > torch.arange(query.shape[2])[:, None] + offset, float("-inf"))
    return (scores.softmax(-1) @ value).float()


@pytest.mark.parametrize("keys", [12, SHORT_SEQUENCE, SHORT_SEQUENCE + 1, 100])
@pytest.mark.parametrize("offset", [None, 0, 4])
def test_equals_the_definition_on_both_sides_of_the_backend_switch(keys, offset):
    queries = keys if offset is None else keys - offset
    query, key, value = heads(queries, 0), heads(keys, 1), heads(keys, 2)
    result = attend(query, key, value, offset)
    assert (result - reference(query, key, value, offset)).abs().max() <= 1e-5


@pytest.mark.parametrize("keys", [10, SHORT_SEQUENCE + 10])
def test_later_queries_against_past_keys_equal_the_whole_sequence(keys):
    query, key, value = heads(keys, 0), heads(keys, 1), heads(keys, 2)
    whole = attend(query, key, value, 0)
    assert (attend(query[:, :, 4:], key, value, 4) - whole[:, :, 4:]).abs().max() <= 1e-5


@pytest.mark.parametrize("keys", [10, SHORT_SEQUENCE + 10])
def test_a_masked_key_has_no_influence_and_no_gradient(keys):
    query, key, value = heads(keys, 0), heads(keys, 1).requires_grad_(), heads(keys, 2).requires_grad_()
    attend(query, key, value, 0)[:, :, :5].sum().backward()
    for tensor in (key, value):
        assert tensor.grad[:, :, 5:].abs().sum() == 0
        assert tensor.grad[:, :, 1:5].abs().sum() > 0


def test_rotary_scores_depend_on_the_distance_only():
    rope = RotaryEmbedding(8)
    query, key = heads(1, 0), heads(1, 1)

    def score(i: int, j: int) -> torch.Tensor:
        return (rope.rotate(query, *rope.angles(i, 1)) * rope.rotate(key, *rope.angles(j, 1))).sum(-1)

    assert torch.allclose(score(5, 2), score(9, 6), atol=1e-5)
    assert not torch.allclose(score(5, 2), score(5, 3), atol=1e-2)


def test_rotary_keeps_lengths_and_leaves_position_zero_alone():
    rope, x = RotaryEmbedding(8), heads(6, 0)
    rotated = rope.rotate(x, *rope.angles(0, 6))
    assert torch.allclose(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])
    # Positions may start later: the tail of a sequence is rotated as in the whole.
    assert torch.equal(rope.rotate(x[:, :, 4:], *rope.angles(4, 2)), rotated[:, :, 4:])


def test_head_norm_gives_unit_root_mean_square_at_any_scale():
    norm, x = HeadRMSNorm(8), heads(4, 0)
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(()), atol=1e-4)
    assert torch.allclose(norm(1000 * x), norm(x), atol=1e-4)
    assert norm(x.bfloat16()).shape == x.shape
