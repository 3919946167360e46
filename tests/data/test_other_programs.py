"""A trajectory file and a folder of them, read by other programs without this one, with the code that docs/data.md shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

from tests.support.documents import ROOT, commands_of
from tests.support.stored_episodes import sound
from wmpo_ray.data.store import save_episodes

DOCUMENT = ROOT / "docs" / "data.md"
assert str(DOCUMENT).endswith("docs/data.md")
THEN = """
import sys
facts = rows[["length", "success", "instruction", "seed"]].to_dict("list")
read = {f"frames{i}": frames(row) for i, row in rows.iterrows()}
np.savez("b.npz", actions=np.stack([actions(row) for _, row in rows.iterrows()]), **read)
print(json.dumps([facts, about["statistics"]["num_actions"]]))
assert not any(name.startswith("wmpo_ray") for name in sys.modules)
"""


def fenced(language: str) -> str:
    """The code of the document's only block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return found


def test_pandas_and_pyarrow_read_a_file(tmp_path):
    episodes = sound()
    save_episodes(tmp_path / "a.parquet", episodes)
    code = fenced("python")
    assert all(line in code for line in commands_of(DOCUMENT, "tests/data/test_other_programs.py"))
    command = [sys.executable, "-c", code + THEN]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
    columns, count = json.loads(done.stdout)
    assert columns["instruction"] == list(episodes.instructions) and columns["success"] == episodes.success.tolist()
    assert columns["length"] == episodes.lengths.tolist() and columns["seed"] == episodes.seeds.tolist()
    assert count == episodes.lengths.sum()
    with np.load(tmp_path / "b.npz") as read:
        assert read["actions"].tobytes() == episodes.actions.tobytes()
        for i, length in enumerate(episodes.lengths):
            assert np.array_equal(read[f"frames{i}"], episodes.frames[i, : length + 1])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two files of two writers."""
    (tmp_path / "set").mkdir()
    for seed in range(2):
        save_episodes(tmp_path / "set" / f"{seed}.parquet", sound(seed=seed))
    return tmp_path / "set"


def test_duckdb_reads_a_folder(folder, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(folder.parent)
    counts, failures = (duckdb.sql(query).fetchall() for query in fenced("sql").strip().rstrip(";").split(";"))
    parts = [sound(seed=seed) for seed in range(2)]
    for text, num, success, steps in counts:
        rows = [(part.success[i], part.lengths[i]) for part in parts for i in range(6) if part.instructions[i] == text]
        assert num == len(rows) == 2 and (success, steps) == tuple(np.mean(rows, axis=0))
    expected = sorted(
        (int(part.seeds[i]), part.frames[i, 0].tobytes())
        for part in parts
        for i in range(6)
        if not part.success[i] and part.lengths[i] >= 2
    )
    assert failures == expected and expected


def test_pyarrow_reads_a_folder_as_one_table(folder):
    table = pyarrow.dataset.dataset(folder).to_table(
        columns=["seed", "length"], filter=pyarrow.dataset.field("success")
    )
    parts = [sound(seed=seed) for seed in range(2)]
    expected = [(int(part.seeds[i]), int(part.lengths[i])) for part in parts for i in np.flatnonzero(part.success)]
    assert [(row["seed"], row["length"]) for row in table.to_pylist()] == expected
