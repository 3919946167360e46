"""Scenes that are stepped by a simulator behind an address; they are those that it would have here, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from wmpo_client import PROTOCOL
from wmpo_client.arrays import to_array
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import ClientError
from wmpo_client.scenes import Scenes, SceneStep, SceneView
from wmpo_client.server_connection import Address, Connection
from wmpo_ray.config.run import EnvironmentConfig
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.frame_sizes import height_and_width
from wmpo_ray.core.interfaces import ChunkSteps, FramesMode
from wmpo_ray.core.observations import Observation, StartState
from wmpo_ray.core.section import shown
from wmpo_ray.environments.remote.remote_settings import RemoteConfig

FRAMES = {"none": pb.NONE, "last": pb.LAST, "all": pb.ALL}
MAX_CHUNK_BYTES = 64 * 2**20  # of frames that are asked for at once; more are asked for step by step


class RemoteEnvironment:
    """N scenes of a remote simulator (implements `wmpo_ray.core.interfaces.Environment`, and its ability "chunks").

    A lost connection is asked again, without a step made twice, and a simulator that has begun anew is brought to where it
    was; one that stays away for longer than `patience_s` is a UserError.
    """

    def __init__(self, config: RemoteConfig):
        self.config = config
        ca, certificate, key = (
            Path(path).expanduser() if path else None for path in (config.ca, config.certificate, config.key)
        )
        try:
            self._connection = Connection(Address(config.address, ca, certificate, key))
            self._scenes = Scenes(self._connection, patience_s=config.patience_s)
            found = self._scenes.capabilities()
        except ClientError as error:
            raise ConfigError(f"environment.address = {shown(config.address)}: {error}") from error
        self._check(found)
        self.horizon, self.action_dim = config.horizon, config.action_dim
        self.frame_shape = (*height_and_width(config.frame_size), 3)
        self.instructions = config.instructions
        self.abilities = frozenset(found.abilities) | {"chunks"}
        self.position_unit = found.position_unit
        self._seen: SceneView | None = None  # what the scenes show as they are, once it was asked for
        self._note()

    @classmethod
    def from_config(cls, config: EnvironmentConfig) -> RemoteEnvironment:
        return cls(cast(RemoteConfig, config))

    def _check(self, found: Any) -> None:
        """Raises ConfigError where the simulator is another one than the settings say."""
        own, frame = self.config, (found.frame_height, found.frame_width)
        for key, wanted, there in (
            ("the protocol", PROTOCOL, found.protocol),
            ("environment.horizon", own.horizon, found.horizon),
            ("environment.action_dim", own.action_dim, found.action_dims),
            ("environment.frame_size", height_and_width(own.frame_size), frame),
            ("environment.instructions", sorted(own.instructions), sorted(found.instructions or own.instructions)),
        ):
            if wanted != there:
                raise ConfigError(
                    f"{key} = {shown(wanted)}, and the simulator at {own.address} has {shown(there)}; change one of them"
                )

    def close(self) -> None:
        self._connection.close()

    # -- episodes ------------------------------------------------------------------------------------------------

    def restore(self, starts: Sequence[StartState]) -> None:
        """Raises ValueError for a start that the simulator cannot place."""
        for i, start in enumerate(starts):
            if start.seed is None and start.saved_state is None:
                raise ValueError(
                    f"start {i} has neither a seed nor a saved state; start from recorded episodes or set "
                    'world_model.kind = "diffusion"'
                )
        self._seen = None
        try:
            self._scenes.reset(starts)
        except ClientError as error:
            if "INVALID_ARGUMENT" in str(error):
                raise ValueError(str(error)) from error
            raise UserError(str(error)) from error
        self._note()

    def _note(self) -> None:
        """Take over what is known of the scenes."""
        self.terminated, self.success = self._scenes.terminated, self._scenes.success
        self.failures = self._scenes.failures

    def advance(self, actions: np.ndarray) -> None:
        self._take(lambda: self._scenes.step(actions[:, None]))

    def advance_chunk(self, actions: np.ndarray, frames: FramesMode) -> ChunkSteps:
        parts = self._parts(actions.shape[1], len(actions), frames)
        made = [self._take(lambda part=part: self._scenes.step(actions[:, part], FRAMES[frames])) for part in parts]
        return _together(made, actions)

    def expert_action(self, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
        try:
            return self._scenes.choose_as_expert(rng, noise)
        except ClientError as error:
            raise UserError(str(error)) from error

    def expert_chunk(self, rng: np.random.Generator, noise: float, length: int, frames: FramesMode) -> ChunkSteps:
        mode, dim = FRAMES[frames], self.action_dim
        parts = [len(range(*part.indices(length))) for part in self._parts(length, len(self.terminated), frames)]
        made = [self._take(lambda n=n: self._scenes.step_expert(rng, noise, n, dim, mode)) for n in parts]
        return _together(made, np.concatenate([each.actions for each in made], 1))

    def _parts(self, length: int, num: int, frames: FramesMode) -> list[slice]:
        """The steps of a chunk that are asked for together: all of them, unless their frames are too many."""
        if frames == "all" and num * length * int(np.prod(self.frame_shape)) > MAX_CHUNK_BYTES:
            return [slice(step, step + 1) for step in range(length)]
        return [slice(0, length)]

    def _take(self, step: Any) -> Any:
        self._seen = None
        try:
            made: SceneStep = step()
        except ClientError as error:
            raise UserError(str(error)) from error
        self._seen = made.view
        self._note()
        return made

    def save(self) -> list[bytes]:
        return self._scenes.save()

    # -- views ---------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        if self._seen is None:
            self._seen = self._scenes.observe()
        return Observation(self._seen.images, self._seen.instructions, self._seen.state)

    def render(self) -> np.ndarray:
        return self.observe().frames

    # -- what it reads -------------------------------------------------------------------------------------------

    def detect_events(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        return self._scenes.read("events", videos=to_array(np.asarray(videos)))

    def locate(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        return self._scenes.read("locate", videos=to_array(np.asarray(frames)))

    def positions(self) -> dict[str, np.ndarray]:
        return self._scenes.read("positions")

    def detect_failures(
        self, videos: np.ndarray, actions: np.ndarray, instructions: Sequence[str], lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        return self._scenes.read(
            "failures",
            videos=to_array(np.asarray(videos)),
            actions=to_array(np.asarray(actions, "<f4")),
            instructions=list(instructions),
            lengths=to_array(np.asarray(lengths, "<i8")),
        )


def _together(made: Sequence[SceneStep], actions: np.ndarray) -> ChunkSteps:
    """The steps that were asked for one by one, as one chunk: between two of them stands the view after the first."""
    frames: list[np.ndarray] = []
    for index, each in enumerate(made):
        if each.frames is not None:
            frames.append(each.frames)
        if index < len(made) - 1 and each.view is not None:
            frames.append(next(iter(each.view.images.values()))[:, None])
    num_steps = np.sum([each.num_steps for each in made], axis=0)
    return ChunkSteps(num_steps, np.concatenate(frames, 1) if frames else None, actions)
