"""The loop between policy and world model, batched over all trajectories of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from wmpo_ray.core.interfaces import Policy, WorldModel
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import GroupRequest, RolloutRequest, StartState, Trajectories, Videos


@dataclass(frozen=True)
class ImaginedRollouts:
    videos: Videos
    trajectories: Trajectories


def imagine(
    policy: Policy,
    world_model: WorldModel,
    request: RolloutRequest,
    num_chunks: int,
    progress: Callable[[], None] = lambda: None,
) -> ImaginedRollouts:
    """Imagine every trajectory of every group of the request, `num_chunks` chunks each.

    A pure function of (weights, request): each random number comes from a generator keyed by (run, update, group,
    member, chunk), so the request can be repeated elsewhere with the same result. `progress` is called after each chunk.
    """
    members = [(group, member) for group in request.groups for member in range(group.group_size)]
    starts = [group.start for group, _ in members]
    instructions = tuple(start.instruction for start in starts)
    state = world_model.start(starts)
    present = np.stack([start.frames[-1] for start in starts])
    frames, seen, tokens, logprobs, actions = [present[:, None]], [], [], [], []
    for chunk in range(num_chunks):
        acting = [member_seed(group, "act", member, chunk) for group, member in members]
        imagining = [member_seed(group, "imagine", member, chunk) for group, member in members]
        with span("policy"):
            decision = policy.act(present, instructions, request.temperature, acting)
        state, imagined = world_model.imagine_chunk(state, decision.actions, imagining)
        seen.append(present)
        tokens.append(decision.tokens.numpy())
        logprobs.append(decision.logprobs.numpy())
        actions.append(decision.actions.numpy())
        frames.append(imagined.numpy())
        present = frames[-1][:, -1]
        progress()
    chunks = np.stack(actions, 1)
    trajectories = Trajectories(
        np.stack(seen, 1), instructions, np.stack(tokens, 1), np.stack(logprobs, 1), chunks, request.version
    )
    videos = Videos(
        np.concatenate(frames, 1), instructions, chunks.reshape(len(members), -1, chunks.shape[-1]), request.groups
    )
    return ImaginedRollouts(videos, trajectories)


def imagine_actions(
    world_model: WorldModel, starts: list[StartState], actions: np.ndarray, keys: list[tuple[GroupRequest, int]]
) -> np.ndarray:
    """Replay given actions [M, T, D] in another world model -> videos [M, T+1, H, W, 3]; keyed like `imagine`."""
    state = world_model.start(starts)
    frames = [np.stack([start.frames[-1] for start in starts])[:, None]]
    for chunk, first in enumerate(range(0, actions.shape[1], world_model.chunk_length)):
        seeds = [member_seed(group, "verify", member, chunk) for group, member in keys]
        part = torch.from_numpy(np.ascontiguousarray(actions[:, first : first + world_model.chunk_length]))
        state, imagined = world_model.imagine_chunk(state, part, seeds)
        frames.append(imagined.numpy())
    return np.concatenate(frames, 1)


def member_seed(group: GroupRequest, purpose: str, member: int, chunk: int) -> int:
    return seed_for(group.run_seed, purpose, group.update, group.attempt, member, chunk)
