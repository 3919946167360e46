"""The flow-matching policy: its paths, its cloning loss, its files. What every policy must hold is in tests/contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.config_errors import error_of
from wmpo_ray.checkpoints.inspection import inspect_path
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.seeding import keyed_noise
from wmpo_ray.environments.pocket.env import INSTRUCTIONS
from wmpo_ray.policies.flow.denoising import times_of
from wmpo_ray.policies.flow.flow_policy import Denoising, FlowPolicy, FlowPolicyHFConfig
from wmpo_ray.policies.small_policy import vocabulary_of

TEXTS = [INSTRUCTIONS[i % 2] for i in range(6)]


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    torch.manual_seed(0)
    sizes = {"width": 32, "num_layers": 2, "num_heads": 2, "patch_size": 8}
    return FlowPolicy(FlowPolicyHFConfig(**sizes, vocabulary=vocabulary_of(INSTRUCTIONS))).eval()


@pytest.fixture(scope="module")
def seen() -> Observation:
    return Observation.of(np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8), TEXTS)


def test_the_record_is_the_path_and_its_end_the_actions(policy, seen):
    decision = policy.act(seen, 1.3, list(range(6)))
    path = decision.record["path"]
    assert path.shape == (6, 5, 4, 3) and path.dtype == torch.float32 and decision.logprobs.shape == (6, 4 * 12)
    assert torch.equal(decision.actions, path[:, -1].clamp(-1, 1))
    assert torch.equal(path[:, 0], keyed_noise(list(range(6)), (5, 4, 3))[:, 0]), "it begins with the request's noise"


def test_a_colder_path_moves_towards_the_path_of_the_ode_from_the_same_noise(policy, seen):
    """The temperature multiplies the noise of the SDE, and nothing is left of the two where it vanishes."""
    seeds = list(range(6))
    paths = [policy.act(seen, temperature, seeds).record["path"] for temperature in (1.0, 0.3, 1e-4)]
    state = paths[0][:, 0]
    for time in times_of(4)[:-1]:
        with torch.no_grad():
            state = state - policy(state[:, None], torch.tensor([time]), **policy._inputs(seen))[:, 0] / 4
    distances = [float((path[:, -1] - state).abs().mean()) for path in paths]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-3


def test_at_temperature_zero_the_ode_takes_its_own_number_of_steps(policy, seen):
    cold = policy.act(seen, 0.0, [0] * 6)
    assert cold.record["path"].shape == (6, 11, 4, 3) and not cold.logprobs.any()
    assert torch.equal(cold.record["path"][:, 0], torch.zeros(6, 4, 3))
    assert cold.logprobs.shape == policy.act(seen, 1.0, [0] * 6).logprobs.shape


def test_what_was_seen_is_computed_once_and_gives_the_same(policy, seen):
    states = torch.randn(6, 3, 4, 3, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([1.0, 0.6, 0.2])
    with torch.no_grad():
        together = policy(states, times, **policy._inputs(seen))
        kept: list = []
        for step in range(3):
            one = policy(states[:, step : step + 1], times[step : step + 1], **policy._inputs(seen), seen=kept)
            torch.testing.assert_close(one[:, 0], together[:, step], atol=1e-5, rtol=1e-5)
    assert len(kept) == 2, "keys and values of each layer"


def test_time_picture_and_instruction_are_read(policy, seen):
    states = torch.zeros(6, 2, 4, 3)
    with torch.no_grad():
        velocity = policy(states, torch.tensor([0.9, 0.1]), **policy._inputs(seen))
        other = policy(states, torch.tensor([0.9, 0.1]), **policy._inputs(Observation(seen.images, tuple(TEXTS[::-1]))))
        blank = policy(states, torch.tensor([0.9, 0.1]), **policy._inputs(Observation.of(255 - seen.frames, TEXTS)))
    for changed in (velocity[:, 1], other[:, 0], blank[:, 0]):
        assert (velocity[:, 0] - changed).abs().amax((1, 2)).min() > 1e-4


def test_cloning_learns_a_chunk_and_then_samples_it(policy, seen):
    """A few steps on six decisions: the ODE gives each its own chunk, and the loss falls to a fraction."""
    torch.manual_seed(0)
    network = FlowPolicy(policy.config)
    actions = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    before = float(network.cloning_loss(seen, actions, range(6)).detach())
    for step in range(150):
        optimizer.zero_grad()
        network.cloning_loss(seen, actions, range(100 * step, 100 * step + 6)).backward()
        optimizer.step()
    assert float(network.cloning_loss(seen, actions, range(6)).detach()) < before / 4
    assert (network.act(seen, 0.0, [0] * 6).actions - actions).abs().mean() < 0.15


def test_the_times_of_the_cloning_loss_are_spread_and_uniform(policy, seen, monkeypatch):
    found = []

    def velocity(states, times, **inputs):
        found.append(times)
        return states

    monkeypatch.setattr(policy, "forward", velocity)
    for first in range(50):
        policy.cloning_loss(seen, torch.zeros(6, 4, 3), range(6 * first, 6 * first + 6))
    times = torch.cat(found)
    assert times.shape == (300, 4) and times.min() >= 0 and times.max() < 1
    torch.testing.assert_close(times.sort(1).values.diff(dim=1), torch.full((300, 3), 0.25))
    assert abs(float(times[:, 0].mean()) - 0.5) < 0.06 and abs(float((times[:, 0] < 0.25).float().mean()) - 0.25) < 0.08


def test_saved_and_loaded_it_is_the_same_and_said_to_be_what_it_is(policy, seen, tmp_path):
    policy.save_pretrained(tmp_path)
    decisions = [network.act(seen, 1.0, list(range(6))) for network in (policy, FlowPolicy.load(tmp_path))]
    assert torch.equal(decisions[0].record["path"], decisions[1].record["path"])
    found = inspect_path(tmp_path)
    assert found.kind == "policy of wmpo (flow)" and found.loadable
    assert found.companions["actions"] == "chunks of 4 x 3, denoised"
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="damaged"):
        FlowPolicy.load(tmp_path)


def test_how_it_denoises_is_no_part_of_the_weights(policy, seen, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = FlowPolicy.load(tmp_path)
    loaded.denoising = Denoising(ode_steps=3, sde_steps=2)
    assert loaded.act(seen, 0.0, [0] * 6).record["path"].shape[1] == 4
    warm = loaded.act(seen, 1.0, [0] * 6)
    assert warm.record["path"].shape[1] == 3 and warm.logprobs.shape == (6, 2 * 12) and loaded.num_sampling_steps == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("policy.flow.sde_steps=11", "sde_steps=11 is more than ode_steps=10"),
        ("policy.flow.noise=0", "policy.flow.noise"),
        ("policy.flow.ode_steps=0", "policy.flow.ode_steps"),
        ("policy.network.width=30", "policy.network.width = 30: it must be a multiple of 4"),
        ("policy.network.num_bins=8", "policy.network.num_bins"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    assert message in error_of("smoke", "policy.kind=flow", setting)
