"""One algorithm is chosen, and only its section of settings has an effect."""

from __future__ import annotations

import pytest

from tests.support.config_errors import error_of, write_config
from wmpo_ray.config.dumping import config_differences, config_to_json, config_to_toml, flatten
from wmpo_ray.config.loading import load_config, read_config_json
from wmpo_ray.config.run import Config


def test_another_algorithm_takes_the_place_of_the_presets(tmp_path):
    config = load_config("smoke", ["algorithm.kind=dpo", "dpo.beta=0.2", "dpo.num_updates=4"])
    assert config.training is config.dpo and (config.dpo.beta, config.training.num_updates) == (0.2, 4)
    assert config.grpo == Config().grpo, "what the preset says of GRPO is dropped"
    (tmp_path / "config.json").write_text(config_to_json(config))
    assert read_config_json(tmp_path / "config.json") == config
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config
    assert "dpo.beta" in flatten(config) and not any(key.startswith("grpo.") for key in flatten(config))
    differing = "\n".join(config_differences(load_config("smoke"), config))
    assert 'algorithm.kind: "grpo" -> "dpo"' in differing and "dpo.beta: none -> 0.2" in differing


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dpo.beta=0.1"],
            "dpo.beta = 0.1 has no effect: it belongs to the algorithm 'dpo', and algorithm.kind = \"grpo\"; remove the key",
        ),
        (["algorithm.kind=dpo", "grpo.clip_low=0.1"], "grpo.clip_low = 0.1 has no effect"),
        (["algorithm.kind=ppo"], 'algorithm.kind = "ppo": known are grpo, rollout_bc, filtered_bc, dpo'),
        (["algorithm.kind=mine", "algorithm.settings=ppo"], 'algorithm.settings = "ppo": known are grpo'),
        (["algorithm.kind=dpo", "dpo.bet=1"], "unknown key dpo.bet; did you mean dpo.beta"),
        (["algorithm.kind=dpo", "dpo.minibatch_trajectories=7"], "dpo.minibatch_trajectories=7: a pair is two"),
        (
            ["algorithm.kind=filtered_bc", "filtered_bc.episodes_per_update=8"],
            "filtered_bc.minibatch_trajectories=64 is more than filtered_bc.episodes_per_update=8; set",
        ),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(overrides, message):
    assert message in error_of("smoke", *overrides)


def test_a_section_that_is_not_chosen_is_refused_in_a_file_and_in_python(tmp_path):
    assert "dpo.beta = 0.3 has no effect" in error_of(write_config(tmp_path, "[dpo]\nbeta = 0.3\n"))
    with pytest.raises(ValueError, match="dpo.beta = 0.3 has no effect"):
        Config.model_validate({"dpo": {"beta": 0.3}})
    config = load_config(write_config(tmp_path, 'preset = "smoke"\n[algorithm]\nkind = "mine"\nsettings = "grpo"\n'))
    assert config.training is config.grpo and config.grpo.num_updates == 2
