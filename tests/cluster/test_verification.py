"""`wmpo verify` finds whatever in a run's folder is not what the run left there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.host.preflight import Verdict
from cluster.recipes import verification
from cluster.recipes.verification import compare_receipts, rerun, verify_run
from wmpo_ray.core.errors import UserError
from wmpo_ray.runs.folder import RunFolder
from wmpo_ray.runs.receipt import RECEIPT, Processor, make_receipt, program_hash, read_receipt


def edit_json(path: Path, *keys: str | int, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def failed(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_run(folder) if check.verdict is Verdict.FAIL}


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    shutil.copytree(whole_run.folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_what_its_receipt_says_wherever_its_folder_stands(run):
    checks = verify_run(run)
    assert {check.verdict for check in checks} == {Verdict.OK}
    receipt = read_receipt(run)
    assert {"outcomes/final.json", "models/policy/model.safetensors", "trajectories/collect.parquet"} <= set(
        receipt.files
    )
    assert receipt.program == program_hash() and receipt == make_receipt(RunFolder(run), {}).model_copy(
        update={"inputs": receipt.inputs}
    )
    result = CliRunner().invoke(app, ["verify", str(run)])
    assert result.exit_code == 0 and "the ledger balances" in result.stdout


def flip_a_weight(run: Path) -> None:
    path = run / "models" / "policy" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def claim_a_success(run: Path) -> None:
    path = run / "outcomes" / "final.json"
    first_failure = json.loads(path.read_text())["success"].index(False)
    edit_json(path, "success", first_failure, value=True)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (flip_a_weight, {"files", "start states"}),
        (claim_a_success, {"files", "result"}),
        (lambda run: (run / "trajectories" / "collect.parquet").unlink(), {"files"}),
        (lambda run: (run / "models" / "new.txt").write_text("x"), {"files"}),
        (
            lambda run: edit_json(run / "summary.json", "result", "final_success", "value", value=0.99),
            {"metrics", "result"},
        ),
        (lambda run: edit_json(run / "summary.json", "result", "gain_points", value=50.0), {"metrics", "result"}),
        (
            lambda run: edit_json(run / "config.json", "evaluation", "temperature", value=0.5),
            {"config", "stages", "start states"},
        ),
        (lambda run: edit_json(run / "config.json", "grpo", "learning_rate", value=1.0e-3), {"config", "stages"}),
        (lambda run: (run / "outcomes" / "base.json").write_text("{"), {"files", "result", "start states"}),
        (lambda run: (run / "outcomes" / "base.json").unlink(), {"files", "result", "start states"}),
    ],
)
def test_a_change_fails_the_checks_that_it_concerns_and_no_others(run, change, names):
    change(run)
    assert set(failed(run)) == names
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 1


def test_another_program_or_processor_is_a_warning(run):
    edit_json(run / RECEIPT, "program", value="0" * 16)
    edit_json(run / RECEIPT, "processor", "name", value="Another")
    (warning,) = [check for check in verify_run(run) if check.verdict is not Verdict.OK]
    assert warning.verdict is Verdict.WARN and "other source files" in warning.detail and "Another" in warning.detail


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}'])
def test_a_damaged_receipt_is_named(run, content):
    (run / RECEIPT).write_text(content)
    with pytest.raises(UserError, match="receipt.json is damaged"):
        verify_run(run)


def test_without_a_receipt_the_way_to_one_is_named(run):
    (run / RECEIPT).unlink()
    with pytest.raises(UserError, match="--resume. writes it"):
        verify_run(run)


def test_a_repetition_is_compared_bit_for_bit_on_the_same_processor(run, whole_run, tmp_path):
    """Here the repetition is done already, so every stage is kept."""
    shutil.copytree(whole_run.folder, tmp_path / "again")
    assert [check.verdict for check in rerun(run, tmp_path / "again", serial=True)] == [Verdict.OK]
    flip_a_weight(tmp_path / "again")
    (check,) = rerun(run, tmp_path / "again", serial=True)
    assert check.verdict is Verdict.FAIL and "models/policy/model.safetensors differs" in check.detail


@pytest.mark.parametrize("left_out", [{}, {"push": "f1 0.500 < gate.min_f1=0.85"}])
def test_a_repetition_leaves_a_task_out_where_the_run_did(run, whole_run, tmp_path, monkeypatch, left_out):
    edit_json(run / "summary.json", "stages", "gate", "metrics", "left_out", value=left_out)
    forced = []
    monkeypatch.setattr(verification, "run_pipeline", lambda *_, force, **__: forced.append(force))
    shutil.copytree(whole_run.folder, tmp_path / "again")
    rerun(run, tmp_path / "again", serial=True)
    assert forced == [not left_out], "with --force none is left out"


def test_a_repetition_replaces_no_other_run(run, whole_run, tmp_path):
    other = whole_run.copy(tmp_path / "other", "grpo.num_updates=3")
    before = (other / "summary.json").read_bytes()
    with pytest.raises(UserError, match="other settings"):
        rerun(run, other, serial=True)
    assert (other / "summary.json").read_bytes() == before
    result = CliRunner().invoke(app, ["verify", str(run), "--rerun", "--out", str(run)])
    assert result.exit_code == 2 and "is the run itself" in result.stderr


def test_on_another_processor_the_intervals_are_compared(run):
    first = read_receipt(run)
    other = first.model_copy(
        update={"processor": Processor(name="Another", vector_instructions="AVX2", gpus=[]), "files": {}}
    )
    bits, *rates = compare_receipts(first, other)
    assert bits.verdict is Verdict.WARN and "Another" in bits.detail
    assert [check.verdict for check in rates] == [Verdict.OK, Verdict.OK]
    far = {"value": 1.0, "low": 0.999, "high": 1.0, "num": 5000}
    apart = other.model_copy(update={"result": first.result | {"final_success": far}})
    assert [check.verdict for check in compare_receipts(first, apart)][1:] == [Verdict.OK, Verdict.FAIL]


@pytest.mark.parametrize("options", [["--out", "x"], ["--serial"]])
def test_options_of_a_repetition_need_one(run, options):
    assert CliRunner().invoke(app, ["verify", str(run), *options]).exit_code == 2
