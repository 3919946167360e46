"""SmolVLA, pi0 and pi0.5 as policies: the folders that lerobot saves, read, trained and written again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from learners.policy_learner import PolicyLearner
from tests.support.implementations import GOLDEN, make_starts
from tests.support.learner_groups import FACTS, groups, sample
from tests.support.small_run import SETTINGS
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.observations import Observation
from wmpo_ray.policies.flow.published_inputs import prepared_images, state_bins
from wmpo_ray.policies.flow.published_policy import PublishedFlowPolicy, Use
from wmpo_ray.policies.flow.vla_kind import PiKind, SmolVLAKind

CPU = torch.device("cpu")
KINDS = ("smolvla", "pi0", "pi05")


def seen(count: int = 2) -> Observation:
    starts = make_starts(count)
    return Observation.of(np.stack([s.frames[-1] for s in starts]), [s.instruction for s in starts])


def config_of(kind: str, folder: Path, **changes) -> Config:
    policy = {"kind": "pi0" if kind == "pi05" else kind, "pretrained": str(folder), "flow": {"sde_steps": 2}} | changes
    return Config.model_validate({**SETTINGS, "policy": policy, "grpo": SETTINGS["grpo"] | {"ratio": "step"}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_is_the_folder_that_lerobot_wrote(kind, tmp_path):
    policy = PublishedFlowPolicy.load(GOLDEN / kind, Use(3))
    policy.save_pretrained(tmp_path / "saved")
    for name, content in policy.folder.files.items():
        assert (tmp_path / "saved" / name).read_bytes() == (GOLDEN / kind / name).read_bytes() == content
    before, after = (load_file(folder / "model.safetensors") for folder in (GOLDEN / kind, tmp_path / "saved"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.endswith("lm_head.weight") and kind != "smolvla" for name in changed), "what is computed with stays"
    again = PublishedFlowPolicy.load(tmp_path / "saved", Use(3))
    one, other = (found.act(seen(), 1.0, [1, 2]) for found in (policy, again))
    assert torch.equal(one.actions, other.actions) and torch.equal(one.logprobs, other.logprobs)


@pytest.mark.parametrize("kind", ["smolvla", "pi05"])
def test_flow_grpo_raises_what_succeeded_and_trains_the_expert_alone(kind, tmp_path):
    config = config_of(kind, GOLDEN / kind)
    learner = PolicyLearner(config, str(GOLDEN / kind), str(tmp_path / "checkpoints"))
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    data = sample(learner)
    assert data.record["path"].shape == (8, 2, 3, 5, 7) and data.behavior_logprobs.shape == (8, 2, 2 * 4 * 3)
    rows = [0, 3, 4, 7]
    watched = Observation.of(data.frames[rows, 0], [data.instructions[i] for i in rows])

    def success_logprob() -> float:
        with torch.no_grad():
            path = torch.from_numpy(data.record["path"][rows, 0])
            return float(learner.policy.log_prob(watched, {"path": path}, 1.0).sum())

    earlier = success_logprob()
    metrics = learner.update(groups(), FACTS, data)[0].metrics
    assert metrics["policy/logprob_distance"] < 1e-3, "rounding alone, before the first step"
    assert success_logprob() > earlier
    changed = {name for name, value in learner.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not [name for name in changed if ".vlm." in name or ".paligemma." in name]


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_seen_decides(kind):
    """Else the parity of a decision would say nothing of how each part is prepared."""
    case, given = (
        json.loads((GOLDEN / kind / "case.json").read_text()),
        load_file(GOLDEN / kind / "decision.safetensors"),
    )
    policy = PublishedFlowPolicy.load(GOLDEN / kind, Use(1, tuple(case["cameras"]), observes_state=True))

    def decision(changed: str = "") -> torch.Tensor:
        images = {name: given[f"frames_{name}"].numpy() // (2 if name == changed else 1) for name in case["cameras"]}
        texts = tuple(text + changed if changed == "now" else text for text in case["instructions"])
        state = given["state"].numpy() + (0.1 if changed == "state" else 0)
        return policy.decided(Observation(images, texts, state), given["noise"])

    torch.testing.assert_close(decision(), given["decision"], atol=1e-4, rtol=0)
    for changed in (*case["cameras"], "now", "state"):
        assert (decision(changed) - given["decision"]).abs().max() > 1e-3, changed


def test_the_chunk_is_normalised_as_the_folder_says(tmp_path):
    """Twice the spread of actions in the statistics is twice the distance from their mean."""
    folder = shutil.copytree(GOLDEN / "smolvla", tmp_path / "smolvla")
    (path,) = folder.glob("policy_postprocessor*.safetensors")
    statistics = load_file(path)
    noise = torch.zeros(2, 5, 7)
    one = PublishedFlowPolicy.load(folder, Use(3)).decided(seen(), noise)
    save_file({**statistics, "action.std": 2 * statistics["action.std"]}, path)
    other = PublishedFlowPolicy.load(folder, Use(3)).decided(seen(), noise)
    mean = statistics["action.mean"]
    torch.testing.assert_close(other - mean, 2 * (one - mean), atol=1e-5, rtol=1e-4)


def test_images_are_padded_without_distortion():
    settings = {kind: PublishedFlowPolicy.load(GOLDEN / kind, Use(1)).folder.settings for kind in ("smolvla", "pi0")}
    white = torch.full((1, 8, 16, 3), 255, dtype=torch.uint8)
    above, centred = (prepared_images(white, settings[kind])[0, 0] for kind in ("smolvla", "pi0"))
    assert above.shape == centred.shape == (16, 16)
    assert (above[:8] == -1).all() and (above[8:] == 1).all()
    assert (centred[[0, 3, 12, 15]] == -1).all() and (centred[4:12] == 1).all()


def test_a_state_is_written_in_256_parts():
    assert state_bins(torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 3.0])) == [-1, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha = true"),
        ("config.json", {"chunk_size": 0}, "chunk_size = 0"),
        ("config.json", {"output_features": {}}, "has no 'action'"),
        ("vlm/config.json", {"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers = 1000000000"),
        ("policy_preprocessor.json", {"steps": [{"registry_name": "x"}]}, 'the step "x" is not done here'),
        ("policy_postprocessor.json", {"steps": 3}, "steps = 3"),
        ("vlm/tokenizer.json", {"version": 3}, "tokenizer.json is damaged"),
    ],
)
def test_a_folder_that_asks_for_what_is_not_done_is_refused(tmp_path, name, change, message):
    folder = shutil.copytree(GOLDEN / "smolvla", tmp_path / "smolvla")
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **change}))
    with pytest.raises(UserError, match=message):
        PublishedFlowPolicy.load(folder, Use(1))


def test_what_a_folder_lacks_is_said_with_the_knob(tmp_path):
    folder = shutil.copytree(GOLDEN / "smolvla", tmp_path / "smolvla")
    vlm = shutil.move(folder / "vlm", tmp_path / "vlm")
    with pytest.raises(UserError, match=r"set policy\.vla\.vlm"):
        PublishedFlowPolicy.load(folder, Use(1))
    policy = PublishedFlowPolicy.load(folder, Use(1), vlm=str(vlm))
    policy.save_pretrained(tmp_path / "saved")
    assert PublishedFlowPolicy.load(tmp_path / "saved", Use(1)).act(seen(), 0.0, [0, 0]).actions.shape == (2, 1, 3)
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(UserError, match="migrate_policy_normalization"):
        PublishedFlowPolicy.load(folder, Use(1), vlm=str(vlm))


def test_a_use_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="rollout.chunk_length=6"):
        PublishedFlowPolicy.load(GOLDEN / "pi0", Use(6))
    with pytest.raises(ConfigError, match="at most so many cameras"):
        PublishedFlowPolicy.load(GOLDEN / "pi0", Use(1, ("main", "a", "b")))
    with pytest.raises(UserError, match="names 'wrist'"):
        PublishedFlowPolicy.load(GOLDEN / "pi0", Use(1, ("main", "wrist"))).act(seen(), 1.0, [0, 1])
    with pytest.raises(UserError, match="a state of 5 values, and what is seen has none"):
        PublishedFlowPolicy.load(GOLDEN / "pi0", Use(1, observes_state=True)).act(seen(), 1.0, [0, 1])
    with pytest.raises(ConfigError, match="policy of type 'pi05'"):
        config = config_of("smolvla", GOLDEN / "pi05")
        SmolVLAKind().load(config, config.policy.pretrained, training=False, device=CPU)
    with pytest.raises(ValueError, match="has no fresh network"):
        config_of("pi0", Path(""), pretrained="")


@pytest.mark.parametrize(("kind", "of"), [("smolvla", SmolVLAKind()), ("pi0", PiKind()), ("pi05", PiKind())])
def test_a_plan_counts_the_network_of_the_folder(kind, of):
    from wmpo_ray.environments.facts import environment_facts
    from wmpo_ray.planning.costs import policy_cost

    config = config_of(kind, GOLDEN / kind)
    cost = policy_cost(config, environment_facts(config.environment))
    parameters = dict(of.load(config, config.policy.pretrained, training=True, device=CPU).named_parameters())
    assert cost.num_parameters == sum(value.numel() for value in parameters.values())
    assert cost.num_trained == sum(value.numel() for value in parameters.values() if value.requires_grad)
    assert 0 < cost.num_trained < cost.num_parameters and cost.sample_bytes == 4 * (3 * 5 * 7 + 2 * 4 * 3)
