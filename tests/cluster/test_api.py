"""A run in Python: clips are reproducible and judged as the run judges, and training goes on."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wmpo_ray
from tests.support.documents import ROOT, commands_of
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.types import Videos
from wmpo_ray.rollout.evaluation import execute_actions
from wmpo_ray.rollout.judge import VideoJudge

NUM_STARTS = 6


@pytest.fixture(scope="module")
def run(whole_run, tmp_path_factory) -> wmpo_ray.Run:
    return wmpo_ray.load(whole_run.copy(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def clips(run) -> list[wmpo_ray.Clip]:
    return [run.imagine(start) for start in run.starts("held-out")[:NUM_STARTS]]


def played(clip: wmpo_ray.Clip) -> Image.Image:
    (data,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', clip._repr_html_())
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, wmpo_ray; print(sorted({'torch', 'numpy', 'ray', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_same_seed_gives_the_same_clip_in_another_process_too(run, clips):
    start = run.starts("held-out")[0]
    again = wmpo_ray.load(run.path).imagine(start, seed=0)
    assert np.array_equal(again.frames, clips[0].frames) and np.array_equal(again.actions, clips[0].actions)
    assert len(again.frames) == run.config.environment.horizon + 1
    assert np.array_equal(again.frames[0], start.frames[-1])
    assert not np.array_equal(run.imagine(start, seed=1).actions, again.actions)
    assert not np.array_equal(run.imagine(start, seed=0, policy="base").actions, again.actions)


def test_a_clip_is_judged_as_the_run_judges_its_videos(run, clips):
    judge = VideoJudge(run.reward_model(), run.config.reward.min_steps)
    frames, actions = (np.stack([getattr(clip, name) for clip in clips]) for name in ("frames", "actions"))
    texts, starts = tuple(clip.instruction for clip in clips), tuple(clip.start for clip in clips)
    scores = judge.judge(Videos(frames, texts, actions, starts))
    for i, clip in enumerate(clips):
        score = clip.judge()
        assert (score.success, score.finish_step) == (bool(scores.success[i]), int(scores.finish_step[i]))
        assert score.probability == pytest.approx(float(scores.probability[i]), abs=1e-5)
        assert score.windows is not None and score.windows.max() == pytest.approx(score.probability)


def test_a_clip_plays_up_to_its_decision(clips, tmp_path):
    for clip in clips:
        unjudged = replace(clip, score=None)
        assert played(unjudged).n_frames == len(clip.frames) and "not judged yet" in unjudged._repr_html_()
        score = clip.judge()
        assert played(clip).n_frames == score.finish_step + 1
        assert ("success</b>" if score.success else "failure</b>") in clip._repr_html_()
    clips[0].save(tmp_path / "clip.webp")
    assert Image.open(tmp_path / "clip.webp").n_frames == clips[0].judge().finish_step + 1


def test_the_instruction_is_text_and_no_markup(clips):
    html = replace(clips[0], instruction='"><script>alert(1)</script>')._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_success_counts_only_if_the_second_world_model_confirms_it(whole_run, clips, tmp_path):
    folder = whole_run.copy(tmp_path / "run", "reward.verify.enabled=true")
    shutil.copytree(folder / "models" / "world-model", folder / "models" / "verifier")
    run = wmpo_ray.load(folder)
    for clip in clips:
        plain, verified = clip.judge(), run.imagine(clip.start).judge()
        assert verified.success == (plain.success and not verified.refuted)
        assert plain.success or not verified.refuted
        assert verified.finish_step == plain.finish_step


def test_the_environment_says_itself_what_succeeded(run):
    for start in run.starts("held-out")[:NUM_STARTS]:
        clip = run.real(start)
        (success,) = execute_actions(run.environment(), [start.seed], clip.actions[None])
        score = clip.judge()
        assert score.success == success and score.windows is None
        assert np.array_equal(clip.frames[0], start.frames[-1])
        assert played(clip).n_frames == score.finish_step + 1


def test_a_run_shows_its_result_and_its_stages(run):
    html = run._repr_html_()
    assert "8 of 8 stages are done" in html and "Imagined against real success" in html
    assert "<script" not in html and html.count("<iframe") == 1


def test_what_a_run_lacks_is_one_line(run, gated_run, tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        wmpo_ray.load(tmp_path)
    half = wmpo_ray.load(gated_run.folder)
    assert "6 of 8 stages are done; optimize is next." in repr(half)
    with pytest.raises(UserError, match="has no final policy yet: the stage optimize has not finished"):
        half.imagine(half.starts()[0])
    assert half.imagine(half.starts()[0], policy="base").judge() is not None
    with pytest.raises(UserError, match='policy="last": it must be'):
        run.policy("last")
    with pytest.raises(UserError, match="the episodes of a run are demos, collect, held-out"):
        run.starts("test")
    with pytest.raises(UserError, match="fewer would train its policy anew"):
        run.train(num_updates=1, serial=True)
    with pytest.raises(UserError, match="num_updates=-1: give 1 or more"):
        run.train(num_updates=-1, serial=True)
    with pytest.raises(UserError, match="start = 3: give a start state"):
        run.imagine(3)
    with pytest.raises(ConfigError, match="unknown key grpo.learning_rat"):
        run.train(settings={"grpo.learning_rat": 1e-4}, serial=True)


def test_a_recipe_without_a_reward_model_says_so(run, tmp_path):
    folder = shutil.copytree(run.path, tmp_path / "run")
    summary = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(summary.replace('"reward-model"', '"other"').replace('"wmpo"', '"dpo"'))
    with pytest.raises(UserError, match='has no reward model: its recipe "dpo" makes none'):
        wmpo_ray.load(folder).reward_model()


def test_what_the_readme_shows_runs_as_it_stands(whole_run, tmp_path, monkeypatch):
    """Only the folder and the number of updates are those of the smallest preset, and nothing starts Ray."""
    marker = "tests/cluster/test_api.py::test_what_the_readme_shows_runs_as_it_stands"
    lines = commands_of(ROOT / "README.md", marker)
    (tmp_path / "runs").mkdir()
    whole_run.copy(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for line in lines:
        line = line.replace("run.train(num_updates=20)", "run.train(num_updates=3, serial=True)")
        if line.startswith("run.train"):
            before = {name: tensor.clone() for name, tensor in names["run"].policy().state_dict().items()}
        exec(line, names)  # noqa: S102  the README is ours
    run = names["run"]
    assert run.summary["stages"]["optimize"]["metrics"]["num_updates"] == 3
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.policy().state_dict().items())
    assert Path("runs/demo/metrics.jsonl").read_text().count("policy/loss") == 3
