"""The benchmarks of full size run, small and on a CPU, through the same code; their metrics share one file."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from benchmarks import results_file
from benchmarks.gpu import imagination, imagined_update, learner_step, policy_act, weight_update
from benchmarks.results_file import merge_results

FIGURE = {"value": 1.0, "unit": "s"}


@pytest.fixture
def run(monkeypatch, tmp_path) -> Callable[..., dict]:
    """Run a script as a user would; its metrics."""
    monkeypatch.setattr(results_file, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run_script(script, *arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", ["benchmark", "--size", "small", "--device", "cpu", *arguments])
        script.main()
        return json.loads((tmp_path / "results" / "gpu.json").read_text())["figures"]

    return run_script


def test_imagination_gives_frames_and_work_of_every_mode_and_batch(run):
    metrics = run(imagination, "--steps", "2,1", "--batches", "1,2", "--modes", "plain,cached")
    for key in ("plain_2_steps_batch_1", "cached_1_steps_batch_2"):
        assert metrics[f"imagination/{key}_frames_per_s"]["value"] > 0
        tflops = metrics[f"imagination/{key}_tflops"]
        assert tflops["share_of_ceiling"] == pytest.approx(
            tflops["value"] / metrics["imagination/matmul_ceiling"]["value"]
        )


def test_acting_training_and_sending_weights_are_measured_in_one_file(run):
    run(policy_act, "--batches", "2", "--repetitions", "1")
    run(learner_step, "--modes", "full_bf16,full_fp32", "--decisions", "2", "--repetitions", "1")
    metrics = run(weight_update, "--changed", "0.05", "--threads", "1")
    assert metrics["policy_act/batch_2_chunks_per_s"]["value"] > 0
    half, whole = (metrics[f"learner_step/{mode}_trained_parameters"]["value"] for mode in ("full_fp32", "full_bf16"))
    assert half < whole, "half of the layers"
    assert metrics["learner_step/full_fp32_2_decisions_mfu"]["value"] > 0
    full, delta = (metrics[f"weight_update/{kind}_bytes"]["value"] for kind in ("full", "delta"))
    assert 0.01 * full < delta < 0.05 * full, "2 bytes a value, and less than one for a changed one and its place"


def test_an_imagined_update_goes_through_actors_and_learner(run):
    metrics = run(imagined_update, "--serial", "--groups", "2", "--group-size", "2", "--steps", "1", "--lora-rank", "0")
    parts = [metrics[f"imagined_update/{name}"]["value"] for name in ("imagine", "judge", "learn", "weights")]
    assert all(part > 0 for part in parts)
    assert metrics["imagined_update/update"]["value"] == pytest.approx(sum(parts))


def test_a_part_that_is_measured_again_leaves_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(results_file, "RESULTS_DIR", tmp_path)
    merge_results("gpu", "act", {"old": FIGURE}, "a")
    merge_results("gpu", "learn", {"step": FIGURE}, "b")
    content = json.loads(merge_results("gpu", "act", {"new": FIGURE}, "c").read_text())
    assert set(content["figures"]) == {"learn/step", "act/new"}
    assert {part: told["command"] for part, told in content["parts"].items()} == {"act": "c", "learn": "b"}
