"""Verifies a run: that its folder is what its receipt says, that its result follows from it, and that it can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from cluster.host.preflight import Check, Verdict
from cluster.loop.ledger import FILE_NAME, Ledger
from cluster.recipes.pipeline import run_pipeline
from cluster.recipes.receipts import inputs_of
from cluster.recipes.recipe_table import stage_labels, steps_of
from cluster.recipes.run_plan import source_of
from cluster.recipes.stage import made_from
from wmpo_ray.config.dumping import config_hash
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import UserError
from wmpo_ray.core.files import sha256_of, sha256_of_folder
from wmpo_ray.core.starts import start_seeds
from wmpo_ray.runs.folder import CONFIG, RunFolder
from wmpo_ray.runs.outcomes import POLICIES, Outcomes, environment_hash, outcomes_file, read_outcomes, run_outcomes_file
from wmpo_ray.runs.receipt import (
    Receipt,
    hash_of,
    hash_of_path,
    hashed_files,
    program_hash,
    read_receipt,
    this_processor,
)
from wmpo_ray.runs.round_folders import label_of, round_folder

MOST_SHOWN = 3


def verify_run(path: Path) -> list[Check]:
    """Compare a run's folder with its receipt, and derive its result again from the outcome of each start.

    FAIL for what does not match; WARN where only this machine or program is another than that of the run. Raises
    UserError for a folder that is no run or has no receipt.
    """
    folder = RunFolder(path)
    receipt = read_receipt(path)
    probes: list[tuple[str, Callable[[], Check]]] = [
        ("files", lambda: check_files(folder, receipt)),
        ("config", lambda: check_config(folder, receipt)),
        ("metrics", lambda: check_metrics(folder, receipt)),
        ("stages", lambda: check_sources(folder)),
        ("result", lambda: check_result(folder)),
        ("start states", lambda: check_starts(folder)),
        ("groups", lambda: check_ledgers(path)),
        ("inputs", lambda: check_inputs(folder.config, receipt)),
    ]
    checks = []
    for name, probe in probes:
        try:
            checks.append(probe())
        except UserError as error:  # a damaged file fails its check and hides no other
            checks.append(Check(name, Verdict.FAIL, str(error)))
    return [*checks, check_program(receipt)]


def _check(name: str, problems: list[str], fine: str, bad: Verdict = Verdict.FAIL) -> Check:
    if not problems:
        return Check(name, Verdict.OK, fine)
    more = len(problems) - MOST_SHOWN
    return Check(name, bad, "; ".join(problems[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else ""))


def check_files(folder: RunFolder, receipt: Receipt) -> Check:
    """Weights, outcomes and trajectories, byte for byte."""
    found = {path.relative_to(folder.path).as_posix(): path for path in hashed_files(folder.path)}
    problems = [f"{name} is missing" for name in receipt.files if name not in found]
    problems += [f"{name} is not in the receipt" for name in found if name not in receipt.files]
    for name, file in receipt.files.items():
        if name in found and found[name].stat().st_size != file.num_bytes:
            problems.append(f"{name} has {found[name].stat().st_size} bytes instead of {file.num_bytes}")
        elif name in found and sha256_of(found[name]) != file.sha256:
            problems.append(f"{name} has other content")
    mb = sum(file.num_bytes for file in receipt.files.values()) / 1e6
    return _check("files", problems, f"{len(receipt.files)} files, {mb:,.1f} MB, have the hashes of the receipt")


def check_config(folder: RunFolder, receipt: Receipt) -> Check:
    now, noted = config_hash(folder.config), folder.summary.get("config_hash")
    problems = (
        [f"config.json has the hash {now}, the receipt {receipt.config_hash}"] if now != receipt.config_hash else []
    )
    problems += [f"config.json has the hash {now}, summary.json {noted}"] if now != noted else []
    return _check("config", problems, f"hash {now}")


def check_metrics(folder: RunFolder, receipt: Receipt) -> Check:
    summary = folder.summary
    now = {label: hash_of(folder.metrics(label)) for label in summary.get("stages", {})}
    labels = sorted({*now, *receipt.stages})
    problems = [
        f"the metrics of {label} are not those of the receipt"
        for label in labels
        if now.get(label) != receipt.stages.get(label)
    ]
    problems += ["the result is not that of the receipt"] if summary.get("result", {}) != receipt.result else []
    return _check("metrics", problems, f"summary.json has those of the receipt for {len(now)} stages")


def check_sources(folder: RunFolder) -> Check:
    """Each finished stage was made from the settings in config.json and from the results before it."""
    results: dict[str, str] = {}
    problems, num_done = [], 0
    for step in steps_of(folder.config):
        wanted, found = made_from(step, folder.config, results), source_of(folder.record(step.label))
        results[step.label] = wanted.result
        if found is not None:
            num_done += 1
            problems += [f"{step.label} was made from other settings"] if found.result != wanted.result else []
    return _check("stages", problems, f"{num_done} of {len(results)} done, all made from config.json")


def check_result(folder: RunFolder) -> Check:
    """Success rates, intervals and gain, from the outcome of each start."""
    found = _outcomes(folder)
    if found is None:
        return Check("result", Verdict.WARN, "not evaluated yet: there is no result to derive")
    result = folder.summary.get("result", {})
    metrics = folder.metrics("evaluate") | folder.metrics(_last_evaluation(folder))
    problems = []
    for policy, outcomes in found.items():
        problems += (
            [f"{policy} success does not follow from {outcomes_file(Path(), policy)}"]
            if result.get(f"{policy}_success") != outcomes.rate
            else []
        )
        wrong = [key for key, value in outcomes.metrics.items() if metrics.get(f"{key}_{policy}") != value]
        problems += [f"{key}_{policy} does not follow from {outcomes_file(Path(), policy)}" for key in wrong]
    base, final = (found[policy].rate["value"] for policy in POLICIES)
    problems += (
        ["the gain is not the difference of the rates"] if result.get("gain_points") != 100 * (final - base) else []
    )
    return _check(
        "result", problems, f"{base:.1%} to {final:.1%} follows from the outcomes of {len(found['base'].starts)} starts"
    )


def check_starts(folder: RunFolder) -> Check:
    """The starts are the held-out ones of the config, and the policies those in the folder."""
    found, config = _outcomes(folder), folder.config
    if found is None:
        return Check("start states", Verdict.WARN, "not evaluated yet")
    starts = start_seeds("evaluate", config.evaluation.num_starts, config.seed).tolist()
    policies = {
        "base": folder.models / "base-policy",
        "final": round_folder(folder.path, config.recipe.rounds) / "models" / "policy",
    }
    problems = []
    for policy, outcomes in found.items():
        is_same = (outcomes.starts, outcomes.environment) == (starts, environment_hash(config))
        problems += [f"those of {policy} are not the {len(starts)} held-out ones of the config"] if not is_same else []
        if outcomes.temperature != config.evaluation.temperature:
            problems.append(f"{policy} acted at temperature {outcomes.temperature}")
        if outcomes.policy != sha256_of_folder(policies[policy]):
            problems.append(f"the policy that was evaluated as {policy} is not the one in the folder")
    return _check("start states", problems, f"{len(starts)} held-out ones, the same for both policies in the folder")


def _last_evaluation(folder: RunFolder) -> str:
    labels = [label_of("evaluate", round) for round in range(folder.config.recipe.rounds, 0, -1)]
    return next((label for label in labels if folder.is_done(label)), "evaluate")


def _outcomes(folder: RunFolder) -> dict[str, Outcomes] | None:
    """By policy; None where the run is not evaluated. Raises UserError where an evaluation kept no outcomes."""
    if not folder.is_done("evaluate"):
        return None
    missing = [path for policy in POLICIES if not (path := run_outcomes_file(folder.path, policy)).is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: `wmpo stage evaluate` with the config of the run writes it again")
    return {policy: read_outcomes(run_outcomes_file(folder.path, policy)) for policy in POLICIES}


def check_ledgers(run: Path) -> Check:
    """Every group that was issued has one end."""
    paths = [path for path in (run / FILE_NAME, *sorted(run.glob(f"rounds/*/{FILE_NAME}"))) if path.is_file()]
    problems = [
        f"{path.relative_to(run)} does not balance" for path in paths if not Ledger.read(path).account().balances
    ]
    return _check("groups", problems, "the ledger balances" if paths else "no rollouts: there is no ledger")


def check_inputs(config: Config, receipt: Receipt) -> Check:
    """Pretrained models: where they are, they must be the same."""
    paths = inputs_of(config)
    missing = [f"{setting} is not on this machine" for setting in receipt.inputs if setting not in paths]
    changed = [
        f"{setting} = {path} has other content"
        for setting, path in paths.items()
        if receipt.inputs.get(setting) != hash_of_path(path)
    ]
    bad = Verdict.FAIL if changed else Verdict.WARN
    return _check("inputs", changed + missing, f"{len(paths)} pretrained models have the hashes of the receipt", bad)


def check_program(receipt: Receipt) -> Check:
    problems = [] if program_hash() == receipt.program else ["the run was made by other source files than those here"]
    problems += [] if this_processor() == receipt.processor else [f"it was made on {receipt.processor.name}"]
    return _check("program", problems, f"source files {receipt.program}, {receipt.processor.name}", Verdict.WARN)


# -- a second run --------------------------------------------------------------------------------------------------


def rerun(path: Path, out: Path, *, serial: bool, console: Console | None = None) -> list[Check]:
    """Run the config of a run again into `out` and compare: bit for bit, or intervals on another kind of processor.

    What is done in `out` is kept, so a repetition that was interrupted goes on. It runs as far as the run had come.
    Raises UserError for a run of which no stage is done, and where `out` holds a run of other settings.
    """
    folder, receipt = RunFolder(path), read_receipt(path)
    done = [label for label in stage_labels(folder.config) if folder.is_done(label)]
    if not done:
        raise UserError(f"{path}: no stage is done, so there is nothing to repeat")
    if (out / CONFIG).exists() and config_hash(RunFolder(out).config) != config_hash(folder.config):
        raise UserError(f"{out} holds a run of other settings, which would be replaced; choose another --out")
    # A missed gate of the run was passed by force, or it would not have come further; with force no task is left out.
    force = not any(folder.metrics(label).get("left_out") for label in done if label.startswith("gate"))
    run_pipeline(folder.config, out, resume=True, serial=serial, force=force, until=done[-1], console=console)
    return list(compare_receipts(receipt, read_receipt(out)))


def compare_receipts(first: Receipt, second: Receipt) -> Iterator[Check]:
    """What must be equal in two runs of one config."""
    reasons = _why_bits_differ(first, second)
    if not reasons:
        problems = [
            f"{name} differs"
            for name in sorted({*first.files, *second.files})
            if first.files.get(name) != second.files.get(name)
        ]
        problems += ["the result differs"] if first.result != second.result else []
        yield _check("repeated, bits", problems, f"{len(first.files)} files and the result are identical")
        return
    yield Check("repeated, bits", Verdict.WARN, f"not comparable bit for bit: {'; '.join(reasons)}")
    for policy in POLICIES:
        a, b = (receipt.result.get(f"{policy}_success") for receipt in (first, second))
        if not a or not b:
            continue
        overlap = a["low"] <= b["high"] and b["low"] <= a["high"]
        text = (
            f"{a['value']:.1%} [{a['low']:.1%}, {a['high']:.1%}] and {b['value']:.1%} [{b['low']:.1%}, {b['high']:.1%}]"
        )
        words = "overlap" if overlap else "do not overlap"
        yield Check(f"repeated, {policy}", Verdict.OK if overlap else Verdict.FAIL, f"95% intervals {words}: {text}")


def _why_bits_differ(first: Receipt, second: Receipt) -> list[str]:
    reasons = []
    if first.processor != second.processor:
        reasons.append(f"made on {first.processor.name}, repeated on {second.processor.name}")
    if first.versions.get("torch") != second.versions.get("torch"):
        reasons.append(f"torch {first.versions.get('torch')}, then {second.versions.get('torch')}")
    return reasons
