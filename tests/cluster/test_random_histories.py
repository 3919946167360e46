"""Law: whatever happens to actors, nodes, answers and drivers, a run ends, with the weights of an undisturbed one.

Each history is the real main loop, pools, queue and ledger on a simulated cluster, with everything drawn from one seed;
`run_history` holds it to the laws. To look at a failing one: `run_history(draw(seed), folder)`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.random_faults import run_history
from tests.support.random_histories import History, draw, expected

HISTORIES = 800
ALL_HISTORIES = 10_000
BLOCK = 250
QUIET = {"num_strikes": 0, "disorder": 0.0, "num_driver_deaths": 0, "is_elastic": False}


def run_all(histories: list[History], folder: Path) -> None:
    gc.disable()  # loops are full of cycles: collecting them one by one takes a fifth of the time
    try:
        for number, history in enumerate(histories):
            place = folder / str(number)
            place.mkdir()
            try:
                run_history(history, place)
            except Exception as error:
                raise AssertionError(f"seed {history.seed}: {error}\n{history}") from error
            if number % 100 == 0:
                gc.collect()
    finally:
        gc.enable()


def run_block(first: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_all([draw(seed) for seed in range(first, first + BLOCK)], Path(folder))


@pytest.mark.parametrize("histories", [HISTORIES, pytest.param(ALL_HISTORIES, marks=pytest.mark.slow)])
def test_no_history_of_faults_changes_the_result(histories):
    # In fresh processes, one for each core: this one may have the threads of a Ray in it.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_block, first) for first in range(0, histories, BLOCK)]):
            done.result()


def test_the_result_follows_from_the_algorithm_alone(tmp_path):
    """Without faults too: not from the number of actors, the size of requests, speculation or the payload."""
    run_all([replace(draw(seed), **QUIET) for seed in range(60)], tmp_path)


def test_a_start_state_that_crashes_its_workers_is_left_out_and_nothing_else(tmp_path):
    for seed in range(60):
        history = replace(draw(seed), **QUIET, max_crashes=2, poison=frozenset({(0, 0), (1, 2)}))
        history = replace(history, speculation=0.0, fill_probability=0.0)
        folder = tmp_path / str(seed)
        life = run_history(history, folder)
        assert life.ledger.verdicts()["quarantined"] >= 1
        assert (folder / "quarantine" / "update-000000-attempt-000000" / "about.json").exists()


def test_the_final_digest_tells_of_every_choice():
    """Otherwise its equality would mean nothing."""
    settings = {"seed": 1, "num_updates": 3, "groups_per_update": 2, "staleness": 0, "keep_rate": 0.5}
    changed = [
        {"seed": 2},
        {"num_updates": 4},
        {"groups_per_update": 3},
        {"staleness": 1},
        {"keep_rate": 0.6},
        {"minibatch": 3},
    ]
    digests = {expected(**settings | change)[0] for change in [{}, *changed]}
    assert len(digests) == 7
