"""Chunks of actions from a policy server; a session that is lost is begun anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from wmpo_client import PROTOCOL, __version__
from wmpo_client.arrays import from_actions
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import ClientError
from wmpo_client.sent_images import encode_image
from wmpo_client.server_connection import Connection, code_of, details_of


@dataclass(frozen=True)
class Seen:
    """What a robot sees: images by camera [H, W, 3] uint8, the main one first."""

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None  # [S] float32

    def message(self, image_format: int = pb.RAW) -> Any:
        images = [encode_image(camera, image, image_format) for camera, image in self.images.items()]
        return pb.Observation(
            images=images, instruction=self.instruction, state=[] if self.state is None else self.state.tolist()
        )


@dataclass(frozen=True)
class Chunk:
    """Actions [K, D] float32 in [-1, 1], all of one version of the policy."""

    actions: np.ndarray
    num_updates: int
    digest: str
    queued_ms: float = 0.0
    policy_ms: float = 0.0
    batch_size: int = 1


class ServedPolicy:
    """One robot's session. Not for two threads at a time.

    patience_s: for which a server that does not answer is asked again, in `act`. Raises ClientError after it, and where
    the server refuses.
    """

    def __init__(
        self,
        connection: Connection,
        robot: str = "robot",
        image_format: int = pb.RAW,
        call_s: float = 10.0,
        patience_s: float = 30.0,
    ):
        self.connection, self.robot, self.image_format = connection, robot, image_format
        self.call_s, self.patience_s = call_s, patience_s
        self._stub = rpc.PolicyStub(connection.channel)
        self._session, self._sequence, self._episode = "", 0, 0
        self.facts = self._hello()

    def begin_episode(self, number: int) -> None:
        """Random numbers of the policy follow from the run, the robot's name and this number."""
        self._episode = number
        self._in_session(self._stub.Reset, lambda: pb.ResetRequest(session=self._session, episode=number))

    def act(self, seen: Seen) -> Chunk:
        self._sequence += 1
        observation = seen.message(self.image_format)
        reply = self._in_session(
            self._stub.Act,
            lambda: pb.ActRequest(session=self._session, sequence=self._sequence, observation=observation),
        )
        policy = reply.policy
        return Chunk(
            from_actions(reply.actions),
            policy.num_updates,
            policy.digest,
            reply.queued_ms,
            reply.policy_ms,
            reply.batch_size,
        )

    def _hello(self) -> Any:
        request = pb.HelloRequest(robot=self.robot, protocols=[PROTOCOL], client_version=__version__)
        facts = self._ask(self._stub.Hello, request)
        self._session, self._sequence = facts.session, 0
        return facts

    def _in_session(self, method: Any, request: Any) -> Any:
        """Ask in the session; where the server has lost it, in a new one."""
        for _ in range(3):
            try:
                return self.connection.call_again(method, request(), self.call_s, self.patience_s)
            except grpc.RpcError as error:
                if code_of(error) != "NOT_FOUND":
                    raise self._explained(error) from error
            sequence = self._sequence
            self._hello()
            self._ask(self._stub.Reset, pb.ResetRequest(session=self._session, episode=self._episode))
            self._sequence = min(sequence, 1)
        raise ClientError(f"{self.connection.address.target}: the server loses every session")

    def _ask(self, method: Any, request: Any) -> Any:
        try:
            return self.connection.call_again(method, request, self.call_s, self.patience_s)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _explained(self, error: grpc.RpcError) -> ClientError:
        return ClientError(f"the policy at {self.connection.address.target}: {details_of(error)}")
