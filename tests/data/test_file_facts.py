"""What a file says of its episodes, and what a check of it names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.stored_episodes import assert_same, sound
from wmpo_ray.core.errors import UserError
from wmpo_ray.data import store
from wmpo_ray.data.about import ABOUT_KEY, Provenance, about_of
from wmpo_ray.data.file_facts import facts_of, problems_of
from wmpo_ray.data.store import load_episodes, save_episodes

ORIGIN = Provenance(origin="real", made_by="policy", policy_sha256="ab" * 32, versions={"mujoco": "2.3.2"})


def test_statistics_are_those_of_the_executed_actions_whatever_the_batches(tmp_path, monkeypatch):
    episodes = sound()
    save_episodes(tmp_path / "a", episodes, ORIGIN)
    with store.episode_writer(tmp_path / "b", ORIGIN) as writer:
        for row in range(6):
            writer.append(episodes.rows(slice(row, row + 1)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    facts = facts_of(tmp_path / "a")
    executed = np.concatenate([episodes.actions[i, :n] for i, n in enumerate(episodes.lengths)]).astype(np.float64)
    assert facts.statistics_stored and facts.statistics.num_actions == len(executed) == episodes.lengths.sum()
    expected = {"mean": executed.mean(0), "std": executed.std(0), "min": executed.min(0), "max": executed.max(0)}
    expected |= {"q01": np.quantile(executed, 0.01, axis=0), "q99": np.quantile(executed, 0.99, axis=0)}
    for name, values in expected.items():
        assert np.allclose(getattr(facts.statistics, name), values, rtol=1e-12), name
    assert facts.provenance == ORIGIN and facts.failures == {
        name: int(flags.sum()) for name, flags in episodes.failures.items()
    }


def without_about(path: Path) -> None:
    """As versions before wrote it."""
    table = pq.read_table(path)
    kept = {key: value for key, value in table.schema.metadata.items() if key != ABOUT_KEY}
    pq.write_table(table.replace_schema_metadata(kept), path)


def test_a_file_of_an_earlier_version_opens_and_its_statistics_are_computed(tmp_path):
    episodes = sound()
    save_episodes(tmp_path / "a", episodes)
    stored = facts_of(tmp_path / "a")
    without_about(tmp_path / "a")
    assert_same(load_episodes(tmp_path / "a"), episodes)
    facts = facts_of(tmp_path / "a")
    assert facts.provenance is None and not facts.statistics_stored and facts.statistics == stored.statistics


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"statistics": {"num_actions": "x"}}', b'{"a": "' + b"b" * 2**20 + b'"}']
)
def test_metadata_that_is_damaged_is_named(tmp_path, text):
    save_episodes(tmp_path / "a", sound())
    table = pq.read_table(tmp_path / "a")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, ABOUT_KEY: text}), tmp_path / "a")
    with pytest.raises(UserError, match="damaged") as raised:
        about_of(tmp_path / "a")
    assert str(tmp_path / "a") in str(raised.value)


def test_a_sound_file_has_no_problems_and_a_wrong_row_is_named(tmp_path):
    path = tmp_path / "a"
    save_episodes(path, sound())
    assert problems_of(path) == []
    episodes = sound()
    episodes.actions[2, 0, 1] = np.nan
    episodes.actions[4, 0, 0] = 1.5
    texts = (*episodes.instructions[:5], " ")
    save_episodes(path, replace(episodes, instructions=texts))
    assert problems_of(path) == [
        f"{path}, row 2: the action of step 0, dimension 1, is nan, outside of [-1, 1]",
        f"{path}, row 4: the action of step 0, dimension 0, is 1.5, outside of [-1, 1]",
        f"{path}, row 5: no instruction",
    ]


def test_actions_after_the_end_of_an_episode_are_not_judged(tmp_path):
    episodes = sound()
    row = int(np.argmin(episodes.lengths))
    episodes.actions[row, episodes.lengths[row] :] = np.nan
    save_episodes(tmp_path / "a", episodes)
    assert episodes.lengths[row] < 4 and problems_of(tmp_path / "a") == []


def test_frames_that_cannot_be_read_are_named_by_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROW_GROUP_BYTES", 1)
    path = tmp_path / "a"
    save_episodes(path, sound())
    column = pq.ParquetFile(path).metadata.row_group(3).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 20] ^= 16
    path.write_bytes(bytes(content))
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}, rows 3 to 3: is damaged")


def test_stored_statistics_of_other_actions_are_a_problem(tmp_path):
    path = tmp_path / "a"
    save_episodes(path, sound())
    other = about_of(path).model_dump()
    other["statistics"]["mean"][0] += 0.1
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, ABOUT_KEY: json.dumps(other).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert problems_of(path) == [f"{path}: its stored statistics are not those of its actions"]


def test_a_file_that_is_no_trajectory_file_is_one_problem(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    (problem,) = problems_of(tmp_path / "a")
    assert "no trajectory file" in problem
