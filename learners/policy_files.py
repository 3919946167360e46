"""Saves the policy of a learner, whole or sharded over several ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from learners.sharding import Ranks, WholeWeights
from wmpo_ray.core.files import atomic_directory


def save_policy(policy: Any, path: Path, ranks: Ranks, create: Callable[[], Any]) -> None:
    """Save the policy as its class does, from rank 0; all ranks call this. `create`: a policy to gather shards in."""
    if ranks.size > 1:
        gathered = WholeWeights(policy)
        if not ranks.is_first:
            gathered.pass_on()
            return
        policy = create()
        state = policy.state_dict()
        for name, tensor in gathered.items():
            state[name].copy_(tensor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(path) as folder:
        policy.save_pretrained(folder)
