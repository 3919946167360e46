"""The interface of an algorithm: how it chooses training data, and the loss of a mini-batch.

The learner owns policy and optimizer and knows no formula; the algorithm owns the formulas and no weights:

    online    the driver keeps groups that `admit` accepts; `prepare` makes one batch of them for each update
    offline   `prepare` is called once, with the base policy; what it gives makes a batch for each update

    measures  what is measured on the first mini-batch before an update
    losses    the loss of a mini-batch, in parts: over the ranks of the learner, and pass by pass on each of them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from wmpo_ray.algorithms.batching import Batch, GroupSlice, Shares
from wmpo_ray.config.algorithms import SECTIONS, GroupSection
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.section import shown
from wmpo_ray.core.types import Episodes, Group, Trajectories, Verdict

ENTRY_POINTS = "wmpo_ray.algorithms"


class PartLoss(NamedTuple):
    """What a part adds to the loss of its mini-batch, and metrics: means over `weight` values, maxima if named so."""

    loss: Tensor
    metrics: dict[str, Tensor]
    weight: float


class Measure(NamedTuple):
    metrics: dict[str, Tensor]
    weight: float


class Algorithm(ABC):
    """Constructed from a config; reads `config.training`. Batches are contiguous; `rows` is a mini-batch of one."""

    def __init__(self, config: Config):
        self.config = config

    def measures(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[Measure]:
        """Metrics computed before an update, without gradients; none by default."""
        return iter(())

    @abstractmethod
    def losses(self, policy: Policy, batch: Batch, rows: slice, shares: Shares) -> Iterator[PartLoss]:
        """The losses of this process's parts; their sum over parts and processes is the loss of the mini-batch.

        The learner goes backward through each of them before it asks for the next, so only one part's activations are
        held at a time.
        """


class OnlineAlgorithm(Algorithm):
    """Learns from rollouts of the newest weights, or of those `filter.max_staleness` updates before.

    A class may set `in_parts = True` if a mini-batch that is prepared from its own groups alone is the same, to the last
    bit, as in the batch of all groups: the rows of a batch are then the trajectories of its groups, in order. It is not
    inherited, since a subclass may normalize over the batch.
    """

    in_parts: ClassVar[bool] = False

    def loss_weight(self, batch: Batch, rows: slice) -> float:
        """How much the loss of these rows counts beside that of others: their common loss is the mean, so weighted.

        A class that is trained `in_parts` may bring it, which lets `groups_per_pass` compute a mini-batch block by block.
        It is not inherited either, since a subclass may take another mean.
        """
        raise NotImplementedError

    @abstractmethod
    def admit(self, group: Group) -> Verdict:
        """Whether a scored group carries a learning signal."""

    @abstractmethod
    def prepare(self, policy: Policy, groups: Sequence[GroupSlice], sources: Sequence[Trajectories]) -> Batch:
        """The batch of an update, from admitted groups in the order given."""

    def summary(self, groups: Sequence[GroupSlice]) -> dict[str, float]:
        """The metrics of a batch of these groups, where it was prepared in parts."""
        return {}


class Recorded(Protocol):
    """Recorded episodes, prepared for an algorithm."""

    def batch(self, update: int) -> Batch:
        """The batch of an update, counted from 0: a function of the run's seed and the number."""


class OfflineAlgorithm(Algorithm):
    """Learns from episodes recorded before the training began."""

    @abstractmethod
    def prepare(self, policy: Policy, episodes: Episodes, shares: Shares, beat: Callable[[], None]) -> Recorded:
        """Choose among the episodes. `policy` is the base policy; `beat` is called to report progress.

        Raises UserError where there is nothing to learn from.
        """


# -- the table ---------------------------------------------------------------------------------------------------


def algorithm_names() -> list[str]:
    """Ours and those of installed packages."""
    return sorted({*SECTIONS, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def algorithm_class(kind: str) -> type[Algorithm]:
    """The class of a kind, ours or from an installed package's entry point. Raises ConfigError for any other."""
    if kind in SECTIONS:
        module, name = SECTIONS[kind].implementation.split(":")
        return getattr(import_module(module), name)
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if kind not in found:
        raise ConfigError(f"algorithm.kind = {shown(kind)}: known are {', '.join(algorithm_names())}")
    try:
        cls: Any = found[kind].load()
    except Exception as error:  # an external package may fail in any way
        raise ConfigError(f"algorithm.kind = {shown(kind)}: {found[kind].value} cannot be loaded: {error!r}") from error
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise ConfigError(f"algorithm.kind = {shown(kind)}: {found[kind].value} is no subclass of {Algorithm.__name__}")
    return cls


def make_algorithm(config: Config) -> Algorithm:
    """The configured algorithm. Raises ConfigError if its settings are of the wrong class."""
    algorithm = algorithm_class(config.algorithm.kind)(config)
    training = config.training
    if isinstance(training, GroupSection) and training.groups_per_pass and not trains_in_blocks(algorithm):
        key = f"{config.algorithm.section}.groups_per_pass"
        raise ConfigError(
            f"{key}={training.groups_per_pass}: algorithm.kind = {shown(config.algorithm.kind)} does not sum up the loss of "
            f"a mini-batch group by group; set {key} to 0"
        )
    source = "offline" if isinstance(algorithm, OfflineAlgorithm) else "online"
    if source != config.training.source:
        raise ConfigError(
            f"algorithm.settings = {shown(config.algorithm.section)} is for {config.training.source} algorithms, and "
            f"algorithm.kind = {shown(config.algorithm.kind)} is {source}; change algorithm.settings"
        )
    return algorithm


def online_algorithm(config: Config) -> OnlineAlgorithm:
    """Raises ConfigError for one that learns from recorded episodes."""
    algorithm = make_algorithm(config)
    if not isinstance(algorithm, OnlineAlgorithm):
        raise ConfigError(
            f"algorithm.kind = {shown(config.algorithm.kind)} learns from recorded episodes, not from rollouts; choose "
            "another algorithm.kind, or train it on episodes"
        )
    return algorithm


def trains_in_parts(algorithm: OnlineAlgorithm) -> bool:
    """Whether mini-batches may be prepared one by one; the class itself has to say so."""
    return bool(vars(type(algorithm)).get("in_parts", False))


def trains_in_blocks(algorithm: Algorithm) -> bool:
    """Whether mini-batches may be computed block by block; the class itself has to say how blocks weigh."""
    if not isinstance(algorithm, OnlineAlgorithm):
        return False
    return trains_in_parts(algorithm) and "loss_weight" in vars(type(algorithm))


def offline_algorithm(config: Config) -> OfflineAlgorithm:
    """Raises ConfigError for one that needs rollouts."""
    algorithm = make_algorithm(config)
    if not isinstance(algorithm, OfflineAlgorithm):
        raise ConfigError(
            f"algorithm.kind = {shown(config.algorithm.kind)} learns from rollouts, not from recorded episodes; choose "
            "another algorithm.kind"
        )
    return algorithm
