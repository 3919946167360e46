"""Reads the cells and works out what is compared: gains, leads over other methods, correlation of both worlds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.cells import read
from benchmarks.evidence.plan import ALL, BUDGET, METHODS, SEEDS, Cell
from wmpo_ray.runs.trust import versions
from wmpo_ray.statistics.aggregate import stratified_interval
from wmpo_ray.statistics.agreement import correlation
from wmpo_ray.statistics.paired import Pairs, bootstrap_difference, mcnemar

FAMILIES = {  # the best setting of each counts
    "online GRPO": ("grpo-online-8", "grpo-online-64"),
    "DPO": ("dpo", "dpo-fast"),
    "cloning of real successes": ("bc-real", "bc-real-chunks", "bc-real-long"),
    "cloning of imagined successes": ("bc-imagined",),
}


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class Recovery(NamedTuple):
    """Of episodes in which an attempt failed: a miss, a jam, a drop, the wrong pocket."""

    failed: int  # episodes with a failed attempt
    recovered: int  # of these, successes in the end
    num: int  # all episodes

    @property
    def share(self) -> float:
        return self.recovered / self.failed if self.failed else math.nan


class Lead(NamedTuple):
    """Of one method over another, on the same seeds and starts."""

    points: Interval  # bootstrap over seeds and starts
    p_value: float  # exact McNemar over all pairs
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """The cells of a method at a budget that have been run."""

    method: str
    budget: int
    cells: dict[int, dict[str, Any]]  # by seed

    @property
    def title(self) -> str:
        return ALL[self.method].title

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.cells)

    def outcomes(self, policy: str, decoding: str = "sampled", seeds: Sequence[int] = ()) -> np.ndarray:
        """Success [S, N] bool of the base or the final policy on N starts."""
        chosen = [self.cells[seed] for seed in seeds or self.seeds]
        return np.array([[bit == "1" for bit in cell[decoding]["policies"][policy]["success"]] for cell in chosen])

    def success(self, policy: str, decoding: str = "sampled") -> float:
        return float(self.outcomes(policy, decoding).mean())

    def by_seed(self, policy: str) -> list[float]:
        return self.outcomes(policy).mean(1).tolist()

    @property
    def gain(self) -> Interval:
        """Points over the base policy."""
        return points(bootstrap_difference(self.outcomes("base"), self.outcomes("final")))

    @property
    def length_ratio(self) -> float:
        """Mean steps of a success over the base policy's (Fig. 5)."""
        means = {}
        for policy in ("base", "final"):
            lengths = np.array([cell["sampled"]["policies"][policy]["lengths"] for cell in self.cells.values()])
            successes = lengths[self.outcomes(policy)]
            means[policy] = successes.mean() if len(successes) else math.nan
        return float(means["final"] / means["base"])

    def recovery(self, policy: str) -> Recovery:
        """How often a policy succeeds after a failed attempt (Fig. 3)."""
        success, failed = self.outcomes(policy), []
        for cell in self.cells.values():
            flags = cell["sampled"]["policies"][policy]["failures"].values()
            failed.append([any(bit == "1" for bit in bits) for bits in zip(*flags, strict=True)])
        tried = np.array(failed)
        return Recovery(int(tried.sum()), int((tried & success).sum()), tried.size)

    def disrupted(self, disruption: str, policy: str) -> np.ndarray | None:
        """Success [S, N] under a disruption (Table 2); None where a seed was not measured."""
        if not all(cell.get("disrupted") for cell in self.cells.values()):
            return None
        chosen = [cell["disrupted"][disruption]["policies"][policy]["success"] for cell in self.cells.values()]
        return np.array([[bit == "1" for bit in bits] for bits in chosen])

    def rounds(self) -> np.ndarray:
        """Success [S, R, N] of the policy that each round left."""
        found = [
            cell.get("rounds") or [cell["sampled"]["policies"]["final"]["success"]] for cell in self.cells.values()
        ]
        return np.array([[[bit == "1" for bit in bits] for bits in each] for each in found])

    def mean(self, *keys: str) -> float:
        """The mean over seeds of a number in the cells; NaN where none has it."""
        values = [_at(cell, keys) for cell in self.cells.values()]
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else math.nan

    @property
    def core_seconds(self) -> float:
        """Processor seconds of what is a method's own, without the stages that cells share; mean over seeds."""
        return self.mean("core_seconds")

    @property
    def machines(self) -> set[str]:
        return {cell["machine"] for cell in self.cells.values()}


def result_of(method: str, budget: int = BUDGET) -> Result | None:
    """None if no seed has been run."""
    found = {seed: cell for seed in SEEDS if (cell := read(Cell(method, budget, seed))) is not None}
    return Result(method, budget, found) if found else None


def lead(ours: Result, other: Result) -> Lead | None:
    """How far a method is ahead of another on the seeds that both have; None if they share none."""
    seeds = tuple(seed for seed in ours.seeds if seed in other.seeds)
    if not seeds:
        return None
    a, b = other.outcomes("final", seeds=seeds), ours.outcomes("final", seeds=seeds)
    return Lead(points(bootstrap_difference(a, b)), mcnemar(Pairs.of(a.ravel(), b.ravel())), seeds)


def best_of(methods: Sequence[str], budget: int = BUDGET) -> Result | None:
    """The one of highest success, which favours baselines that have several settings."""
    found = [result for method in methods if (result := result_of(method, budget)) is not None]
    return max(found, key=lambda result: result.success("final"), default=None)


def iqm_of(result: Result) -> Interval:
    """Interquartile mean of the success of the seeds, percent, with its bootstrap interval."""
    return points(stratified_interval([np.array(result.by_seed("final"))]))


def best_baseline(budget: int = BUDGET) -> Result | None:
    return best_of([method for method in METHODS if method != "wmpo"], budget)


def trust_pairs(result: Result) -> list[tuple[int, int, float, float]]:
    """(seed, updates, imagined success, real success) of every version that was measured in both worlds."""
    found = []
    for seed, cell in result.cells.items():
        lines = [
            {"update": update, key: value}
            for key in ("imagined/success_rate", "real/success_rate")
            for update, value in cell["curves"].get(key, [])
        ]
        found += [(seed, *version) for version in versions(lines)]
    return found


def trust_r(result: Result) -> float | None:
    """Correlation of imagined and real success over the versions of all seeds."""
    pairs = trust_pairs(result)
    return correlation([pair[2] for pair in pairs], [pair[3] for pair in pairs])


def imagined_real_gaps(result: Result) -> list[float]:
    """Imagined minus real success of the final policy on the same held-out starts, points, by seed."""
    gaps = []
    for seed in result.seeds:
        if imagined := result.cells[seed].get("imagined"):
            bits = imagined["final"]
            real = result.outcomes("final", seeds=(seed,))[0, : len(bits)]
            gaps.append(100 * (bits.count("1") / len(bits) - float(real.mean())))
    return gaps


def points(shares: tuple[float, float, float]) -> Interval:
    return Interval(*(100 * share for share in shares))


def _at(cell: dict[str, Any], keys: Sequence[str]) -> float | None:
    value: Any = cell
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None
