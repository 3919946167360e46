"""Records what a robot saw and did, one file for each episode, in a spool."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from wmpo_client.episode_file import EpisodeFileWriter
from wmpo_client.episode_spool import Spool
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.refusals import ClientError
from wmpo_client.served_policy import Chunk, Seen

PURPOSES = ("collect", "gate", "demos", "evaluate")


class EpisodeRecorder:
    """`begin`, `step` for every action, `end`. A frame is kept as PNG, which loses nothing, unless another format is given."""

    def __init__(self, spool: Spool, robot: str = "robot", image_format: int = pb.PNG):
        self.spool, self.robot, self.image_format = spool, robot, image_format
        self._file: EpisodeFileWriter | None = None

    @property
    def is_recording(self) -> bool:
        return self._file is not None

    def begin(self, seen: Seen, purpose: str = "collect", seed: int = -1) -> None:
        """purpose: one of PURPOSES. seed: of a simulator's scene; -1: nothing can rebuild it."""
        if purpose not in PURPOSES:
            raise ValueError(f"purpose={purpose!r}: known are {', '.join(PURPOSES)}")
        self.drop()
        self._file = self.spool.begin()
        start = pb.EpisodeStart(
            robot=self.robot,
            purpose=purpose,
            observation=seen.message(self.image_format),
            seed=seed,
            time=time.time(),
        )
        self._append(pb.EpisodeRecord(start=start))

    def step(
        self,
        action: np.ndarray,
        seen: Seen,
        is_human: bool = False,
        chunk: Chunk | None = None,
        failures: Sequence[str] = (),
    ) -> None:
        """An action [D] that was executed, and what was seen after it.

        is_human: an operator's correction. chunk: whose action it was. failures: what has gone wrong so far, by name.
        """
        if self._file is None:
            raise ValueError("no episode has begun")
        policy = None if chunk is None else pb.PolicyVersion(num_updates=chunk.num_updates, digest=chunk.digest)
        step = pb.EpisodeStep(
            action=np.asarray(action, np.float32).tolist(),
            observation=seen.message(self.image_format),
            is_human=is_human,
            policy=policy,
            failures=failures,
        )
        self._append(pb.EpisodeRecord(step=step))

    def end(
        self,
        success: bool | None,
        decided_by: str = "operator",
        probability: float = 0.0,
        failure_names: Sequence[str] = (),
    ) -> str:
        """success None: no verdict, which a person gives later. Returns the episode's id; it is sent from now on."""
        if self._file is None:
            raise ValueError("no episode has begun")
        verdict = pb.UNKNOWN if success is None else pb.SUCCESS if success else pb.FAILURE
        end = pb.EpisodeEnd(
            verdict=verdict, decided_by=decided_by, probability=probability, failure_names=failure_names
        )
        self._append(pb.EpisodeRecord(end=end))
        file, self._file = self._file, None
        file.close()
        self.spool.finish(file.path)
        return file.path.stem

    def _append(self, record: pb.EpisodeRecord) -> None:
        """Raises ClientError where the disk takes no more; what it took is an episode when the spool is opened again."""
        assert self._file is not None
        try:
            self._file.append(record)
        except OSError as error:
            path, self._file = self._file.path, None
            raise ClientError(
                f"{path}: {error.strerror}; what was recorded before stays, and is sent once there is room and the spool "
                "is opened again"
            ) from error

    def drop(self) -> None:
        """Forget the episode that is being recorded, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file.path.unlink()
            self._file = None
