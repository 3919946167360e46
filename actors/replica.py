"""Base class of processes with a policy replica: loads weights and reports their version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actors.broadcast_group import BroadcastGroup, GroupSpec
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.timeline import count, span
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.weight_exchange import WeightReceiver
from wmpo_ray.policies.weight_payload import WeightMismatchError, WeightPayload


class Replica:
    """Base of the actors that act with the learner's weights.

    `num_threads` hash the weights. Calls are one after the other, so weights change between requests and a request has
    exactly one version.
    """

    def __init__(self, policy: Policy, num_threads: int = 1):
        self.policy = policy
        self._receiver = WeightReceiver(policy, num_threads)
        self._group: BroadcastGroup | None = None

    @property
    def version(self) -> WeightVersion:
        """The version of the loaded weights; (-1, "") before the first ones."""
        return self._receiver.version

    def load_weights(self, payload: WeightPayload | None) -> WeightVersion:
        """Load a payload; the returned digest is computed from the loaded weights.

        Raises WeightMismatchError where it does not fit, and for None, which stands for a compact payload that the
        learner could not make; the full one mends either.
        """
        if payload is None:
            raise WeightMismatchError("there is no compact payload for this version; send the full one")
        return self._load(payload)

    @contextmanager
    def borrowed(self, payload: WeightPayload) -> Iterator[None]:
        """Act with the weights of a full payload inside the block; restores the previous weights afterwards.

        A worker that makes rollouts also evaluates, and must not lose the weights that its next request asks for.
        """
        with self._receiver.borrowed():
            self._load(payload)
            yield

    def stage_weights(self, step: WeightPayload) -> str:
        """Put the weights of an optimizer step aside, while the policy acts with its own; for another thread.

        Returns the name of the step that is staged. Raises WeightMismatchError where it does not fit the policy.
        """
        return self._receiver.stage(step)

    def receive_broadcast(self, group: GroupSpec, rank: int) -> WeightVersion:
        """Load the payload that rank 0 broadcasts to the group; joins the group first if it is new.

        Raises BroadcastError if a member goes away or does not come, and what `load_weights` raises.
        """
        if self._group is None or self._group.spec != group:
            self.leave_group()
            self._group = BroadcastGroup(group, rank)
        return self._load(self._group.receive())

    def _load(self, payload: WeightPayload) -> WeightVersion:
        with span("load"):
            count("bytes", payload.nbytes)
            return self._receiver.load(payload)

    def leave_group(self) -> None:
        """Close the connections of the broadcast group, if there is one."""
        if self._group is not None:
            self._group.close()
            self._group = None
