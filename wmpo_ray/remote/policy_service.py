"""The service Policy: what robots ask, checked, and what they are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import numpy as np

import wmpo_client
from wmpo_client.arrays import to_actions
from wmpo_client.protocol import wmpo_pb2 as pb
from wmpo_client.protocol import wmpo_pb2_grpc as rpc
from wmpo_client.refusals import Refusal, bad
from wmpo_client.sent_images import decode_image, image_bytes
from wmpo_ray.core.section import shown
from wmpo_ray.core.seeding import seed_for
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.remote.act_batcher import ActBatcher, Answer, Question
from wmpo_ray.remote.serving_metrics import ServingMetrics
from wmpo_ray.remote.session_table import Session, SessionTable

POLICY_SERVICE = "wmpo.v1.Policy"
MAX_ANSWER_S = 30.0  # for a robot that names no deadline
MAX_STATE = 1024  # numbers of proprioception
MAX_TEXT = 1000  # characters of an instruction or a robot's name


class PolicyFacts(NamedTuple):
    """What a robot is told of the policy."""

    frame_shape: tuple[int, int, int]  # H, W, 3 of the main camera
    chunk_length: int
    action_dim: int
    instructions: tuple[str, ...]  # empty: any
    seed: int  # of the run: random numbers of an episode follow from it, the robot's name and the episode's number
    max_message_bytes: int


class PolicyService(rpc.PolicyServicer):
    """`version` is the newest of all replicas; each answer says which one acted."""

    def __init__(self, facts: PolicyFacts, batcher: ActBatcher, version: WeightVersion, metrics: ServingMetrics):
        self.facts, self.batcher, self.version, self.metrics = facts, batcher, version, metrics
        self.sessions = SessionTable()
        metrics.watch_sessions(lambda: len(self.sessions))

    async def Hello(self, request: Any, context: Any) -> Any:
        if request.protocols and wmpo_client.PROTOCOL not in request.protocols:
            raise Refusal(
                "FAILED_PRECONDITION", "protocol", f"protocol {wmpo_client.PROTOCOL} is spoken; update the client"
            )
        if len(request.robot) > MAX_TEXT:
            raise bad(f"a robot's name of {len(request.robot)} characters; {MAX_TEXT} are the most")
        facts = self.facts
        return pb.HelloReply(
            session=self.sessions.open(request.robot),
            protocol=wmpo_client.PROTOCOL,
            server_version=wmpo_client.__version__,
            policy=_version(self.version),
            chunk_length=facts.chunk_length,
            action_dims=facts.action_dim,
            frame_height=facts.frame_shape[0],
            frame_width=facts.frame_shape[1],
            instructions=facts.instructions,
            image_formats=[pb.RAW, pb.PNG, pb.JPEG],
            max_message_bytes=facts.max_message_bytes,
        )

    async def Reset(self, request: Any, context: Any) -> Any:
        session = self.sessions.find(request.session)
        session.episode, session.first = request.episode, session.last
        return pb.ResetReply()

    async def Act(self, request: Any, context: Any) -> Any:
        return await self._act(request, context)

    async def ActStream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._act(request, context)

    async def _act(self, request: Any, context: Any) -> Any:
        """The answer to a question; asked again, the same one."""
        session = self.sessions.note_act(request.session)
        if request.sequence != session.last or session.reply is None:
            if request.sequence <= session.last:
                raise Refusal(
                    "FAILED_PRECONDITION", "stale", f"question {request.sequence} comes after {session.last} was asked"
                )
            if session.reply is not None and not session.reply.done():
                raise Refusal("RESOURCE_EXHAUSTED", "busy", "the question before this one is not answered yet")
            session.last = request.sequence
            session.reply = asyncio.ensure_future(self._answer(request, session, context))
            session.reply.add_done_callback(_seen)
        try:
            return await asyncio.shield(session.reply)  # the robot may be cut off and ask again
        except Exception:
            session.reply = None  # this one may be repeated
            session.last = min(session.last, request.sequence - 1)
            raise

    async def _answer(self, request: Any, session: Session, context: Any) -> Any:
        index, left = int(request.sequence) - session.first, context.time_remaining()
        seconds = MAX_ANSWER_S if left is None else left
        answer = await self.decide(request.session, session, index, request.observation, seconds)
        return pb.ActReply(
            sequence=request.sequence,
            actions=to_actions(answer.actions),
            policy=_version(answer.version),
            queued_ms=1000 * answer.queued_s,
            policy_ms=1000 * answer.policy_s,
            batch_size=answer.batch_size,
        )

    async def decide(self, name: str, session: Session, index: int, seen: Any, seconds: float) -> Answer:
        """What the policy decides for an Observation of a session within so many seconds.

        name: of the session. index: of the chunk in its episode, from 1 on; with the episode it decides the random numbers.
        Raises Refusal for an observation that the policy cannot be asked about, and where the time is over.
        """
        began = time.monotonic()
        seed = seed_for(self.facts.seed, "serve", session.robot, session.episode, index)
        question = await self._question(name, seen, seed, began + min(MAX_ANSWER_S, seconds))
        answer = await self.batcher.ask(question)
        self._note(answer, time.monotonic() - began)
        return answer

    async def _question(self, name: str, seen: Any, seed: int, until: float) -> Question:
        facts = self.facts
        image_bytes(seen.images)
        main = seen.images[0]
        if (main.height, main.width) != facts.frame_shape[:2]:
            raise bad(
                f"the main camera shows {main.height} x {main.width} pixels; the policy sees {facts.frame_shape[0]} x "
                f"{facts.frame_shape[1]}"
            )
        if facts.instructions and seen.instruction not in facts.instructions or len(seen.instruction) > MAX_TEXT:
            known = ", ".join(shown(each) for each in facts.instructions[:8])
            raise bad(f"the instruction {shown(seen.instruction)} is none that the policy knows: {known}")
        if len(seen.state) > MAX_STATE:
            raise bad(f"a state of {len(seen.state)} numbers; {MAX_STATE} are the most")
        if all(image.format == pb.RAW for image in seen.images):
            images = {image.camera: decode_image(image) for image in seen.images}
        else:  # decoding takes a millisecond and more, in which others are served
            images = await asyncio.to_thread(lambda: {image.camera: decode_image(image) for image in seen.images})
        state = np.array(seen.state, np.float32) if seen.state else None
        if state is not None and not np.isfinite(state).all():
            raise bad("a state that is not finite")
        return Question(name, images, seen.instruction, state, seed, until)

    def _note(self, answer: Answer, seconds: float) -> None:
        metrics, version = self.metrics, answer.version
        metrics.act_seconds.observe(seconds)
        metrics.policy_seconds.observe(answer.policy_s)
        metrics.batch_size.observe(answer.batch_size)
        metrics.chunks.labels(str(version.num_updates), version.digest).inc()


def _version(version: WeightVersion) -> Any:
    return pb.PolicyVersion(num_updates=version.num_updates, digest=version.digest)


def _seen(reply: asyncio.Future[Any]) -> None:
    """Whoever asked may be gone: an error that nobody waits for is no event."""
    if not reply.cancelled():
        reply.exception()
