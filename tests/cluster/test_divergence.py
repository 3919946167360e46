"""A run that has diverged fails and says so."""

from __future__ import annotations

import json


def test_a_learning_rate_that_ruins_the_policy_is_one_line_and_no_success(shell, gated_run, tmp_path):
    settings = ("grpo.learning_rate=1e30", "grpo.num_updates=1")
    folder = gated_run.copy(tmp_path / "run", *settings)
    changes = [part for setting in settings for part in ("--set", setting)]
    done = shell.wmpo("stage", "optimize", "smoke", "--serial", "--quiet", "--out", folder, *changes)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert "not finite" in line and "lower grpo.learning_rate=1e+30" in line
    assert "optimize" not in json.loads((folder / "summary.json").read_text())["stages"]
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "models" / "policy").exists()
