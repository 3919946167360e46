"""A trajectory file and a folder of them, read by other programs without this one: what README.md shows, typed and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.stored_episodes import sound
from wmpo_ray.data.store import save_episodes

READER = """
import json, sys
import numpy as np, pandas, pyarrow as pa, pyarrow.parquet as pq

path, out = sys.argv[1:]
rows = pandas.read_parquet(path)
header = json.loads(pq.read_schema(path).metadata[b"wmpo_ray"])
shape = header["height"], header["width"], header["channels"]
frames = []
for value, length in zip(rows["frames"], rows["length"]):
    size = (length + 1) * header["height"] * header["width"] * header["channels"]
    frames.append(np.frombuffer(pa.decompress(value, int(size), "zstd"), np.uint8).reshape(-1, *shape))
size = header["horizon"], header["action_dims"]
actions = [np.frombuffer(value, "<f4").reshape(size) for value in rows["actions"]]
about = json.loads(pq.read_metadata(path).metadata[b"wmpo_ray.about"])
np.savez(out, actions=np.stack(actions), **{f"frames{i}": video for i, video in enumerate(frames)})
print(json.dumps([rows[["length", "success", "instruction", "seed"]].to_dict("list"), about["statistics"]["num_actions"]]))
assert not any(name.startswith("wmpo_ray") for name in sys.modules)
"""


def run(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=arguments[0].parent)
    assert not done.returncode, done.stderr
    return done.stdout


def test_pyarrow_and_pandas_read_a_file(tmp_path):
    episodes = sound()
    save_episodes(tmp_path / "a.parquet", episodes)
    columns, count = json.loads(run(READER, tmp_path / "a.parquet", tmp_path / "b.npz"))
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


QUERIES = """
SELECT instruction, count(*) AS episodes, avg(success::INT) AS success, avg(length) AS steps
FROM 'set/*.parquet' GROUP BY instruction ORDER BY instruction;
SELECT seed, first_frame FROM 'set/*.parquet' WHERE NOT success AND length >= 2 ORDER BY seed;
"""


def test_duckdb_reads_a_folder(folder, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(folder.parent)
    counts, failures = (duckdb.sql(query).fetchall() for query in QUERIES.strip().split(";")[:2])
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
