"""The process that broadcasts weights to a group of replicas, so that the learner need not join the group.

A receiver that dies in the middle of a transfer can take the sender down. The learner only leaves its weights in the
object store; this process reads them there and is replaced with its group.
"""

from __future__ import annotations

from actors.broadcast_group import SENDER, BroadcastGroup, GroupSpec
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.policies.weight_payload import BroadcastError, WeightPayload


class WeightPublisherActor:
    """Rank 0 of one group for its whole lifetime."""

    def __init__(self, group: GroupSpec, num_threads: int):
        configure_process(num_threads)
        self._spec = group
        self._group: BroadcastGroup | None = None

    def broadcast(self, payload: WeightPayload) -> str:
        """Send a payload to every replica of the group; returns the error message, or "".

        Nothing is raised: a replica that did not get the weights reports it, and this process is replaced.
        """
        try:
            if self._group is None:
                self._group = BroadcastGroup(self._spec, SENDER)
            self._group.send(payload)
        except BroadcastError as error:
            return str(error)
        return ""
