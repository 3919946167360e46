"""The ledger: steps in their order only, a balance at all times, and the same account when it is read back."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.loop.ledger import Ledger, LedgerError, State
from wmpo_ray.core.errors import UserError

WAY = (State.ISSUED, State.IMAGINED, State.SCORED, State.ADMITTED, State.TRAINED)
FACTS = {State.TRAINED: {"version": 1}, State.REJECTED: {"verdict": "uniform"}}


def walk(ledger: Ledger, key: tuple[int, int], *steps: State) -> None:
    for state in steps:
        ledger.append(state, key, **FACTS.get(state, {}))


def seen(ledger: Ledger) -> tuple:
    return (
        ledger.account(),
        {key: (record.state, record.facts) for key, record in ledger.records.items()},
        ledger.epoch,
        ledger.offset,
        ledger.verdicts(),
    )


@pytest.mark.parametrize("done", range(len(WAY) + 1))
@pytest.mark.parametrize("step", list(State))
def test_only_the_next_step_is_taken(done, step):
    ledger = Ledger(None)
    walk(ledger, (0, 0), *WAY[:done])
    allowed = done < len(WAY) and step is WAY[done] or step is State.REJECTED and 0 < done < len(WAY)
    if allowed:
        walk(ledger, (0, 0), step)
        assert ledger.state((0, 0)) is step
    else:
        with pytest.raises(LedgerError, match=r"group \(0, 0\) cannot become"):
            walk(ledger, (0, 0), step)
    assert ledger.account().balances


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_balances_after_every_step_and_reads_back_the_same(data, tmp_path):
    path = tmp_path / f"{data.draw(st.integers(0, 2**60))}.jsonl"
    ledger = Ledger(path)
    for _ in range(data.draw(st.integers(0, 60))):
        if data.draw(st.integers(0, 9)) == 0:
            version = data.draw(st.integers(0, 3))
            taken = ledger.restored(version)
            assert all(update >= version for update, _ in taken)
            assert all(update < version for update, _ in ledger.records)
        elif data.draw(st.integers(0, 9)) == 0:
            ledger.late()
        else:
            key = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2)))
            try:
                walk(ledger, key, data.draw(st.sampled_from(list(State))))
            except LedgerError:
                pass
        assert ledger.account().balances
    ledger.close()
    assert seen(Ledger.read(path)) == seen(ledger)
    assert seen(Ledger(path)) == seen(ledger)


def written(path: Path) -> bytes:
    ledger = Ledger(path)
    for attempt in range(4):
        walk(ledger, (0, attempt), *WAY)
    ledger.close()
    return path.read_bytes()


def test_cut_short_anywhere_it_goes_on_behind_the_last_whole_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    content = written(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        ledger = Ledger(path)
        whole = content[:length].count(b"\n")
        assert ledger.offset == whole
        ledger.restored(0)
        walk(ledger, (0, 9), State.ISSUED)
        ledger.close()
        again = Ledger.read(path)
        assert again.offset == whole + 2 and again.state((0, 9)) is State.ISSUED


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    content = bytearray(written(path))
    content[content.index(b"\n", 300) - 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ledger\.jsonl, line \d+: damaged.*delete the file"):
        Ledger(path)


def test_nothing_is_on_the_disk_before_the_flush_and_everything_after(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    walk(ledger, (0, 0), *WAY[:3])
    assert path.read_bytes() == b""
    ledger.flush()
    assert Ledger.read(path).state((0, 0)) is State.SCORED


def test_groups_that_were_taken_back_may_go_their_way_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    walk(ledger, (0, 0), *WAY)
    walk(ledger, (1, 0), *WAY[:4])
    taken = ledger.restored(1)
    assert set(taken) == {(1, 0)} and taken[(1, 0)].state is State.ADMITTED
    walk(ledger, (1, 0), *WAY)
    account = ledger.account()
    assert (account.issued, account.trained, account.withdrawn) == (2, 2, 1)
    with pytest.raises(LedgerError):
        walk(ledger, (0, 0), State.TRAINED)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        "[" * 100_000,
        '{"n":1}',
        '{"n":"x","epoch":0,"event":"late"}',
        '{"n":1,"epoch":0,"event":"trained","group":[0]}',
        '{"n":1,"epoch":0,"event":"abducted","group":[0,1]}',
        '{"n":1,"epoch":0,"event":"restored"}',
    ],
)
def test_a_line_with_a_good_checksum_that_is_none_of_ours_is_named(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{line}\t{zlib.crc32(line.encode()):08x}\n")
    with pytest.raises(UserError, match="line 1"):
        Ledger.read(path)
