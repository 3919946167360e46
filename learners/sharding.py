"""One learner in several processes: each holds a shard of every weight (FSDP2) and computes a share of every minibatch.

The parts of a minibatch are weighted so that the sum of the ranks' gradients is the gradient of one process.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from wmpo_ray.core.types import WeightVersion

T = TypeVar("T")


@dataclass(frozen=True)
class RankSpec:
    """Everything that a process needs to connect to the other ranks of its learner."""

    rank: int
    size: int
    host: str  # of the rendezvous store
    port: int
    timeout_s: float  # of each collective operation


class Ranks:
    """This process's rank in its learner. A single process is rank 0 of 1 and does not communicate.

    Everything but `shard`, `is_first` and `parts` must be called by all ranks, in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._mesh: Any = None

    @classmethod
    def join(cls, spec: RankSpec, device: torch.device) -> Self:
        """Connect to the other ranks. Raises RuntimeError if they do not join within the timeout."""
        timeout = timedelta(seconds=spec.timeout_s)
        if spec.host.startswith("127."):
            _stay_on_loopback()
        on_gpu = device.type == "cuda"
        store = dist.TCPStore(spec.host, spec.port, is_master=False, wait_for_workers=False, timeout=timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=spec.rank,
            world_size=spec.size,
            timeout=timeout,
            device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
        )
        ranks = cls(spec.rank, spec.size)
        ranks._mesh = init_device_mesh(device.type, (spec.size,))
        return ranks

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # -- weights -------------------------------------------------------------------------------------------------

    def shard(self, policy: Any, compute_dtype: torch.dtype | None = None) -> None:
        """Keep only this rank's rows of every parameter of a policy that is the same on all ranks.

        The blocks named in `_no_split_modules` are gathered one at a time while they compute, in `compute_dtype` (None:
        the weights' own); gradients are summed in float32. A single rank is left as it is.
        """
        if self.size == 1:
            return
        precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
        names = set(policy._no_split_modules)
        blocks = [module for module in policy.modules() if type(module).__name__ in names]
        for module in [*blocks, policy]:
            fully_shard(module, mesh=self._mesh, mp_policy=precision)
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                # Sum, since the loss is weighted already. Setting only the factor needs an operation that gloo lacks.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    # -- work and metrics ----------------------------------------------------------------------------------------

    def parts(self, places: Tensor, max_size: int = 0) -> list[Tensor]:
        """This rank's share of `places` [n], cut into equal parts of at most `max_size` (0: one part).

        Every rank has the same number of parts, since all gather weights together; one may be empty.
        """
        count = math.ceil(len(places) / self.size)
        own = places.tensor_split(self.size)[self.rank]
        return list(own.tensor_split(math.ceil(count / (max_size or count or 1)) or 1))

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks of values [n] on the CPU."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def all(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """The value that rank 0 computes; its errors are raised on every rank."""
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = make()
            except Exception as error:  # noqa: BLE001  the other ranks would wait forever
                answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


ALONE = Ranks()


def _stay_on_loopback() -> None:
    """By default gloo and NCCL listen on the interface of the host name; choose loopback for a local store."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; other tensors are returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WholeWeights:
    """A policy for `WeightEncoder` that gathers its tensors one at a time; all ranks must iterate over `items`.

    `state`: a state dict kept from before, instead of the present one.
    """

    def __init__(self, policy: Any, state: Mapping[str, Tensor] | None = None):
        self._policy, self._state = policy, state

    def named_parameters(self, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self._policy.named_parameters(**options)

    def state_dict(self) -> WholeWeights:
        return self

    def items(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (self._policy.state_dict() if self._state is None else self._state).items():
            yield name, whole(tensor.detach())

    def pass_on(self) -> None:
        """Gather for the first rank only."""
        for _ in self.items():
            pass


class Bystander:
    """Replaces `WeightEncoder` on ranks other than 0."""

    last = None

    def __init__(self, weights: WholeWeights):
        self._weights = weights

    def encode(self, num_updates: int) -> tuple[WeightVersion, None, None]:
        self._weights.pass_on()
        return WeightVersion(num_updates, ""), None, None

    def encode_step(self) -> None:
        self._weights.pass_on()


class MetricMeans:
    """Means and maxima over parts and ranks, equal to those over the whole batch."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._weight = 0.0

    def add(self, metrics: Mapping[str, Tensor | float], weight: float) -> None:
        """Add the metrics of a part: maxima if the name says so, otherwise means over `weight` values."""
        self._weight += weight
        for name, value in metrics.items():
            if _is_maximum(name):
                self._values[name] = max(self._values.get(name, -math.inf), float(value) if weight else -math.inf)
            else:
                self._values[name] = self._values.get(name, 0.0) + (float(value) * weight if weight else 0.0)

    def over(self, ranks: Ranks) -> dict[str, float]:
        """The metrics over all ranks; all must have added the same names."""
        own = torch.tensor([self._weight, *self._values.values()], dtype=torch.float64)
        largest, (weight, *sums) = ranks.largest(own.clone()).tolist()[1:], ranks.total(own).tolist()
        return {
            name: high if _is_maximum(name) else total / max(weight, 1.0)
            for name, high, total in zip(self._values, largest, sums, strict=True)
        }


def _is_maximum(name: str) -> bool:
    return name.endswith("_max")
