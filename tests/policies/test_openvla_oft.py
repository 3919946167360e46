"""OpenVLA-OFT at small size: its protocol, its attention, its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.openvla import small_policy, tokenizer_json
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.observations import Observation
from wmpo_ray.policies.openvla.chunk_attention import key_mask
from wmpo_ray.policies.openvla.oft import OpenVLAOFTPolicy
from wmpo_ray.policies.openvla.prompt import TOKENIZER, PromptTokenizer

SHORT, LONG = "push the block", "push the block slowly into the blue pocket"


@pytest.fixture(scope="module")
def policy() -> OpenVLAOFTPolicy:
    return small_policy()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


# -- the protocol ------------------------------------------------------------------------------------------------


def test_act_and_log_prob_agree(policy, frames):
    assert isinstance(policy, Policy)
    texts = [SHORT, LONG, SHORT, LONG]
    chunk = policy.act(Observation.of(frames, texts), 1.6, [1, 2, 3, 4])
    assert chunk.record["tokens"].shape == (4, 6) and chunk.record["tokens"].dtype == torch.int64
    assert chunk.actions.shape == (4, 2, 3) and chunk.actions.dtype == torch.float32
    assert int(chunk.record["tokens"].min()) >= policy.config.vocab_size - 256
    assert int(chunk.record["tokens"].max()) < policy.config.vocab_size
    again = policy.log_prob(Observation.of(frames, texts), chunk.record, 1.6)
    torch.testing.assert_close(again.detach(), chunk.logprobs, atol=1e-5, rtol=0)
    again.sum().backward()
    assert policy.projector.fc1.weight.grad.abs().sum() > 0
    policy.zero_grad()


def test_actions_are_those_of_the_tokens(policy, frames):
    chunk = policy.act(Observation.of(frames, [SHORT] * 4), 1.0, [1, 2, 3, 4])
    decoded = policy.action_tokenizer.decode(chunk.record["tokens"]).float().view(4, 2, 3)
    assert torch.equal(chunk.actions, decoded) and chunk.actions.abs().max() <= 1
    units = policy.statistics.unnormalize(chunk.actions)
    torch.testing.assert_close(units[..., 1].float(), 2 * chunk.actions[..., 1]), "coffee spans [-2, 2] there"


def test_a_padded_row_acts_as_it_does_alone(policy, frames):
    together = policy.act(Observation.of(frames[:2], [SHORT, LONG]), 1.0, [7, 8])
    for i, text in enumerate((SHORT, LONG)):
        alone = policy.act(Observation.of(frames[i : i + 1], [text]), 1.0, [7 + i])
        assert torch.equal(together.record["tokens"][i], alone.record["tokens"][0])
        torch.testing.assert_close(together.logprobs[i], alone.logprobs[0], atol=1e-4, rtol=0)


def test_temperature_zero_takes_the_likeliest_and_the_seed_decides_otherwise(policy, frames):
    texts = [LONG] * 4
    one, other = (policy.act(Observation.of(frames, texts), 0.0, seeds) for seeds in ([0] * 4, [1] * 4))
    assert torch.equal(one.record["tokens"], other.record["tokens"])
    hot, again, differing = (policy.act(Observation.of(frames, texts), 5.0, [seed] * 4) for seed in (0, 0, 1))
    assert torch.equal(hot.record["tokens"], again.record["tokens"]) and not torch.equal(
        hot.record["tokens"], differing.record["tokens"]
    )


def test_frame_and_instruction_are_read(policy, frames):
    tokens = policy.act(Observation.of(frames, [SHORT] * 4), 1.0, [1, 2, 3, 4]).record["tokens"]
    with torch.no_grad():
        one = policy.log_prob(Observation.of(frames, [SHORT] * 4), {"tokens": tokens}, 1.0)
        assert not torch.allclose(
            one, policy.log_prob(Observation.of(frames, [LONG] * 4), {"tokens": tokens}, 1.0), atol=1e-3
        )
        assert not torch.allclose(
            one, policy.log_prob(Observation.of(255 - frames, [SHORT] * 4), {"tokens": tokens}, 1.0), atol=1e-3
        )


# -- the network -------------------------------------------------------------------------------------------------


def test_bins_are_a_slice_of_the_vocabulary(policy, frames):
    inputs = policy.inputs(Observation.of(frames, [SHORT] * 4))
    with torch.no_grad():
        bins, full = policy(**inputs), policy(**inputs, full_vocabulary=True)
    # The padded vocabulary has 64 rows that are no tokens.
    torch.testing.assert_close(bins, full[..., -320:-64])


def test_earlier_tokens_see_later_ones_and_nobody_sees_padding(policy):
    language_model = policy.language_model.model
    embeddings = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    changed = embeddings.clone()
    changed[:, -1] += 1

    def hidden(x, mask):
        return language_model(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state.detach()

    without = hidden(embeddings, None)
    assert not torch.allclose(without[:, 0], hidden(changed, None)[:, 0], atol=1e-4)
    mask = key_mask(torch.tensor([8, 9]), 9)
    one, other = hidden(embeddings, mask), hidden(changed, mask)
    torch.testing.assert_close(one[0, :8], other[0, :8])
    torch.testing.assert_close(one[0, :8], hidden(embeddings[:1, :8], None)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one[1, 0], other[1, 0], atol=1e-4)


def test_padding_left_or_right_is_the_same(policy, frames):
    inputs = policy.inputs(Observation.of(frames[:2], [SHORT, LONG]))
    missing = int((~inputs["attention_mask"][0]).sum())
    right = {
        **inputs,
        "input_ids": torch.stack([inputs["input_ids"][0].roll(-missing), inputs["input_ids"][1]]),
        "attention_mask": torch.stack([inputs["attention_mask"][0].roll(-missing), inputs["attention_mask"][1]]),
    }
    assert missing and torch.equal(policy(**inputs), policy(**right))


def test_the_image_stands_behind_the_first_token_and_action_slots_are_zero(policy, frames):
    inputs = policy.inputs(Observation.of(frames[:1], [SHORT]))
    embeddings, lengths = policy.embed(**inputs)
    ids, table = inputs["input_ids"], policy.language_model.model.embed_tokens.weight
    patches = policy.projector(policy.vision_backbone(inputs["pixel_values"]))
    assert lengths.tolist() == [embeddings.shape[1]] == [ids.shape[1] + 4 + 6 + 1]
    assert torch.equal(embeddings[0, 0], table[1]) and torch.equal(embeddings[0, 1:5], patches[0])
    assert torch.equal(embeddings[0, 5:-7], table[ids[0, 1:]])
    assert not embeddings[0, -7:-1].any() and torch.equal(embeddings[0, -1], table[2])


def test_activation_checkpointing_changes_no_gradient_also_in_evaluation_mode(frames):
    policy = small_policy()
    calls: list[str] = []
    policy.language_model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: calls.append("language"))
    policy.vision_backbone.featurizer.blocks[0].attn.qkv.register_forward_hook(lambda *_: calls.append("vision"))
    tokens = policy.act(Observation.of(frames, [SHORT] * 4), 1.0, [1, 2, 3, 4]).record["tokens"]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            policy.activation_checkpointing_enable()
        policy.eval()
        policy.zero_grad()
        calls.clear()
        policy.log_prob(Observation.of(frames, [SHORT] * 4), {"tokens": tokens}, 1.0).mean().backward()
        assert sorted(calls) == sorted(["language", "vision"] * (1 + checkpointing))
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_bfloat16_computes_near_float32_and_keeps_float32_gradients(policy, frames):
    half = small_policy(compute_dtype="bfloat16")
    inputs = policy.inputs(Observation.of(frames, [SHORT] * 4))
    with torch.no_grad():
        exact = policy(**inputs)
    rounded = half(**inputs)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).abs().mean() / exact.std()
    assert 1e-5 < error < 0.1
    rounded.float().sum().backward()
    assert {p.grad.dtype for p in half.parameters() if p.grad is not None} == {torch.float32}


def test_a_policy_in_bfloat16_acts(frames):
    chunk = small_policy().to(torch.bfloat16).act(Observation.of(frames, [SHORT, LONG, SHORT, LONG]), 1.0, [1, 2, 3, 4])
    assert chunk.logprobs.dtype == torch.float32 and bool(chunk.logprobs.isfinite().all())


def test_cloning_teaches_the_actions(frames):
    policy = small_policy(unnorm_key=None)
    texts = [SHORT, LONG, SHORT, LONG]
    actions = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = policy.cloning_loss(Observation.of(frames, texts), actions)
        loss.backward()
        optimizer.step()
    taught = policy.act(Observation.of(frames, texts), 0.0, [0] * 4)
    assert (taught.actions - actions).abs().max() <= 1 / 255 + 1e-6, float(loss)


def test_the_cloning_loss_is_that_of_all_tokens_and_the_stop_token(policy, frames):
    actions = torch.zeros(4, 2, 3)
    inputs = policy.inputs(Observation.of(frames, [SHORT] * 4))
    with torch.no_grad():
        loss = policy.cloning_loss(Observation.of(frames, [SHORT] * 4), actions)
        logprobs = F.log_softmax(policy(**inputs, full_vocabulary=True, with_stop=True), -1)
    tokens = policy.action_tokenizer.encode(actions).flatten(1)
    expected = torch.cat([logprobs[:, :-1].gather(-1, tokens[..., None])[..., 0], logprobs[:, -1, 2:3]], 1)
    torch.testing.assert_close(loss, -expected.mean())


# -- prompts -----------------------------------------------------------------------------------------------------


def test_a_prompt_starts_with_bos_and_ends_with_the_empty_token():
    plain, ended = (PromptTokenizer.of({TOKENIZER: tokenizer_json()}, 336, end) for end in (None, 300))
    assert plain.ids(SHORT)[0] == 1 and ended.ids(SHORT) == [*plain.ids(SHORT), 300]
    assert plain.ids(SHORT.upper()) == plain.ids(SHORT), "instructions are lower case in training"
    assert PromptTokenizer.of({TOKENIZER: tokenizer_json()}, 100, 300).ids(SHORT) == plain.ids(SHORT)


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(UserError, match="the policy's vocabulary has 5"):
        PromptTokenizer.of({TOKENIZER: tokenizer_json()}, 5, None).ids(SHORT)


def test_without_a_tokenizer_it_says_which_file_is_missing(frames):
    policy = small_policy()
    policy.attach_files({})
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        policy.act(Observation.of(frames, [SHORT] * 4), 1.0, [1, 2, 3, 4])
