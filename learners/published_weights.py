"""The versions of a learner's weights, as they go out to the replicas."""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from learners.sharding import Bystander, Ranks, WholeWeights
from wmpo_ray.config.run import Config
from wmpo_ray.core.learner_types import StepFacts
from wmpo_ray.core.timeline import count, span
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_exchange import WeightEncoder
from wmpo_ray.policies.weight_payload import WeightPayload


class PublishedWeights:
    """Encodes the present weights and those of the `filter.max_staleness` versions before them.

    `trained`: names of the parameters that training changes. Every rank makes the same calls; only the first has the
    payloads.
    """

    def __init__(self, config: Config, policy: Any, trained: AbstractSet[str], ranks: Ranks):
        self._config, self._policy, self._trained, self._ranks = config, policy, trained, ranks
        self._encoder = self._make_encoder()
        self.digests: dict[int, str] = {}
        # Versions that replicas may still need.
        num_earlier = config.max_staleness if config.training.source == "online" else 0
        self.earlier: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=num_earlier)
        self._payloads: dict[int, tuple[WeightVersion, WeightPayload | None]] = {}
        self._last: tuple[StepFacts, WeightPayload] | None = None  # the step that ended the latest update
        self._steps_bytes = 0  # of the steps of the update in progress

    def _make_encoder(self, state: dict[str, Tensor] | None = None) -> WeightEncoder | Bystander:
        """An encoder of the current weights, or of those in `state`."""
        weights: Any = WholeWeights(self._policy, state)
        if not self._ranks.is_first:
            return Bystander(weights)
        return WeightEncoder(weights, self._config.weights, self._trained)

    def keep(self, num_updates: int) -> None:
        """Before the first step of an update: replicas may still need the weights."""
        if self.earlier.maxlen:
            before = {name: tensor.detach().clone() for name, tensor in self._policy.state_dict().items()}
            self.earlier.append((num_updates, before))

    def publish(self, num_updates: int) -> tuple[WeightVersion, WeightPayload | None, WeightPayload | None]:
        """The present weights become a version: in full, and compact where there is such a payload."""
        version, full, compact = self._encoder.encode(num_updates)
        self.digests[version.num_updates] = version.digest
        self._payloads[version.num_updates] = version, full
        for old in [v for v in self._payloads if v < version.num_updates - self._config.max_staleness]:
            del self._payloads[old]
        last, steps, self._last, self._steps_bytes = self._encoder.last, self._steps_bytes, None, 0
        if last is not None and compact is not None:
            self._last = StepFacts(last.base, version.digest, last.nbytes, steps + last.nbytes, compact.nbytes), last
        return version, full, compact

    def of(self, num_updates: int) -> tuple[WeightVersion, WeightPayload | None]:
        """A version's weights: the present one, or one of the `filter.max_staleness` before it."""
        if num_updates not in self._payloads:
            version, full, _ = self._make_encoder(dict(self.earlier)[num_updates]).encode(num_updates)
            self._payloads[num_updates] = version, full
        return self._payloads[num_updates]

    # -- inside an update ----------------------------------------------------------------------------------------

    def step(self) -> tuple[StepFacts, WeightPayload | None]:
        """What changed since the latest step, inside an update."""
        self._last = None
        if not self._config.weights.per_step:
            return StepFacts(), None  # on every rank: none of them gathers
        with span("encode"):
            delta = self._encoder.encode_step()
        if delta is None:
            return StepFacts(), None
        count("bytes", delta.nbytes)
        self._steps_bytes += delta.nbytes
        return StepFacts(delta.base, delta.version.digest, delta.nbytes, self._steps_bytes), delta

    @property
    def last_step(self) -> StepFacts | None:
        """About the step that ended the latest update; None where the update's own delta is not larger."""
        return self._last[0] if self._last is not None else None

    def take_last_step(self) -> WeightPayload | None:
        return self._last[1] if self._last is not None else None
