"""Tests of two policies that may be read after every pair of trials, and stopped at any of them.

Both ask, as STEP does (Snyder et al., arXiv 2503.10966), whether one success rate is higher than the other, and both
work on the difference of a pair: a trial of A and a trial of B. A pair in which both succeed or both fail says nothing;
if the rates are equal, either is as likely to be the one that succeeded in any other pair (Wald, Sequential Analysis,
1947, chapter 6). So the unknown common rate, which makes STEP solve an optimization problem in two dimensions, drops
out, and a pair may be a start state that both policies were tried on.

`BettingTest` has no last trial. `SpendingTest` has one, chosen in advance, and nearly the power of a test at that end.
"""

from __future__ import annotations

import enum

import numpy as np

NUM_BETS = 32


class Decision(enum.Enum):
    """The value is the word for it."""

    UNDECIDED = "undecided"
    A_HIGHER = "A is higher"
    B_HIGHER = "B is higher"


class BettingTest:
    """An anytime-valid test by betting: wealth that cannot be expected to grow unless one mean is higher.

    Wealth of "B is higher" after pairs of scores (a, b) in [0, 1] is the mean over bets l of prod(1 + l (b - a)), for l
    on an even grid in (0, 1). If B's mean is at most A's it is a nonnegative supermartingale from 1, so by Ville's
    inequality it reaches 2 / level with probability at most level / 2, however often it is read; likewise for A.
    Waudby-Smith and Ramdas, Estimating Means of Bounded Random Variables by Betting, JRSS B 86 (2024), 1-27. As in Snyder
    et al., arXiv 2603.13616, scores may also be partial credit.
    """

    def __init__(self, level: float = 0.05):
        _check_level(level)
        self.level, self.num_pairs, self.decision = level, 0, Decision.UNDECIDED
        self._bets = (np.arange(NUM_BETS) + 0.5) / NUM_BETS
        self._log_wealth = np.zeros((2, NUM_BETS))  # of the bets on A and on B

    @property
    def evidence(self) -> tuple[float, float]:
        """Wealth (e-values) of "A is higher" and of "B is higher"; decided at 2 / level."""
        with np.errstate(over="ignore"):
            for_a, for_b = np.exp(np.logaddexp.reduce(self._log_wealth, axis=1)) / NUM_BETS
        return float(for_a), float(for_b)

    def add(self, a: float, b: float) -> Decision:
        """The decision after one more pair; once made, it stays. Raises `ValueError` for a score outside [0, 1]."""
        a, b = float(a), float(b)
        if not (0 <= a <= 1 and 0 <= b <= 1):
            raise ValueError(f"scores {a} and {b} must lie between 0 and 1; divide them by the largest possible one")
        self.num_pairs += 1
        self._log_wealth += np.log1p(np.outer([a - b, b - a], self._bets))
        if self.decision is Decision.UNDECIDED:
            for wealth, decision in zip(self.evidence, (Decision.A_HIGHER, Decision.B_HIGHER), strict=True):
                if wealth >= 2 / self.level:
                    self.decision = decision
        return self.decision


class SpendingTest:
    """An exact test of outcomes with a last pair: its error probability is spent over the pairs to come.

    After pair t of `max_pairs` at most level * (t / max_pairs)**rho has been spent (Lan and DeMets, Biometrika 70 (1983),
    659-663; Kim and DeMets, Biometrika 74 (1987), 149-154), which plays the part of STEP's budget of risk. The pairs that
    differ are fair coins if the rates are equal, so the distribution of the undecided walk is computed exactly, and with
    it what each boundary spends. If B's rate is lower, its walk reaches B's boundary less often still. A larger `rho`
    keeps more for the end.
    """

    def __init__(self, max_pairs: int, level: float = 0.05, rho: float = 2.0):
        _check_level(level)
        if max_pairs < 1 or rho <= 0:
            raise ValueError(f"max_pairs={max_pairs} must be at least 1 and rho={rho} positive")
        self.level, self.max_pairs, self.rho = level, max_pairs, rho
        self.num_pairs, self.decision = 0, Decision.UNDECIDED
        self._wins = 0  # of B, among the pairs that differ
        self._mass = np.ones(1)  # [pairs that differ + 1]: probability of each number of wins, still undecided
        self._spent = 0.0  # on each side

    def add(self, a: bool, b: bool) -> Decision:
        """The decision after one more pair; once made, it stays. Raises `ValueError` beyond the last pair."""
        if self.num_pairs == self.max_pairs:
            raise ValueError(
                f"pair {self.num_pairs + 1} of max_pairs={self.max_pairs}: choose the last pair in advance"
            )
        self.num_pairs += 1
        if self.decision is not Decision.UNDECIDED:
            return self.decision
        if bool(a) != bool(b):
            self._wins += bool(b)
            self._mass = (np.append(self._mass, 0.0) + np.append(0.0, self._mass)) / 2
        self._spend()
        return self.decision

    def _spend(self) -> None:
        """Move both boundaries inwards as far as the budget allows; by symmetry they spend the same."""
        budget = self.level / 2 * (self.num_pairs / self.max_pairs) ** self.rho - self._spent
        differing = len(self._mass) - 1
        tail = np.cumsum(self._mass)  # of at most k wins
        width = min(int(np.searchsorted(tail, budget, "right")), (differing + 1) // 2)
        if not width:
            return
        self._spent += float(tail[width - 1])
        self._mass[:width] = self._mass[differing + 1 - width :] = 0.0
        if self._wins < width:
            self.decision = Decision.A_HIGHER
        elif differing - self._wins < width:
            self.decision = Decision.B_HIGHER


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1: it bounds the probability of a wrong decision")
