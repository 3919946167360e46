"""The service Episodes: what robots send, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import Refusal
from wmpo_ray.remote.robot_episodes import EpisodeFolder
from wmpo_ray.remote.serving_metrics import ServingMetrics
from wmpo_ray.remote.upload_store import Piece, UploadState, UploadStore

EPISODE_SERVICE = "wmpo.v1.Episodes"
Result = TypeVar("Result")


class EpisodeService(rpc.EpisodesServicer):
    """Writes in threads of its own, so that robots which act are not kept waiting by those that send."""

    def __init__(self, folder: EpisodeFolder, metrics: ServingMetrics):
        self.folder, self.store, self.metrics = folder, UploadStore(folder), metrics
        self._threads = ThreadPoolExecutor(2, "uploads")
        folder.land_all()

    async def State(self, request: Any, context: Any) -> Any:
        return _reply(await self._run(lambda: self.store.state(request.id, request.sha256)))

    async def Put(self, request: Any, context: Any) -> Any:
        piece = Piece(request.id, request.sha256, request.total_bytes, request.offset, request.data)
        return _reply(await self._run(lambda: self._put(piece)))

    def _put(self, piece: Piece) -> UploadState:
        before = self.folder.path(piece.id).exists()
        state = self.store.put(piece)
        if state.received_bytes == piece.offset + len(piece.data):
            self.metrics.upload_bytes.inc(len(piece.data))
        if state.is_complete and not before:
            self._land(piece.id)
        return state

    def _land(self, id: str) -> None:
        """An episode that fits no other is kept as it came: the robot is rid of it, and a person can look at it."""
        try:
            verdict = self.folder.land(id)
        except Refusal as refusal:
            self.metrics.refused(f"landing_{refusal.reason}")
            verdict = "misfit"
        self.metrics.uploads.labels(verdict).inc()

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def add_episodes(folder: EpisodeFolder, metrics: ServingMetrics) -> Callable[[Any], str]:
    """What puts the service on a server, and names it."""

    def add(server: Any) -> str:
        rpc.add_EpisodesServicer_to_server(EpisodeService(folder, metrics), server)
        return EPISODE_SERVICE

    return add


def _reply(state: UploadState) -> Any:
    return pb.UploadState(received_bytes=state.received_bytes, complete=state.is_complete)
