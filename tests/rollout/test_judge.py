"""Who decides: videos are watched, successes confirmed in a second world, the world itself believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.implementations import make_environment_world, make_starts, make_tiny
from wmpo_ray.core.types import GroupRequest, RolloutRequest, Scores, Videos
from wmpo_ray.reward_models.decisions import decide
from wmpo_ray.rollout.judge import NoisyJudge, VerifiedJudge, VideoJudge, WorldJudge, verify
from wmpo_ray.rollout.requests import rollout_request


class Brightness:
    """A judge that calls a video a success if its last frame is bright."""

    def __init__(self) -> None:
        self.asked: list[Videos] = []

    def judge(self, videos: Videos) -> Scores:
        self.asked.append(videos)
        level = videos.frames[:, -1].mean((1, 2, 3)).astype(np.float32)
        return Scores(level > 100, np.where(level > 100, 3, videos.horizon), level)


def make_videos(levels: list[int]) -> Videos:
    frames = np.zeros((len(levels), 9, 2, 2, 3), np.uint8) + np.array(levels, np.uint8)[:, None, None, None, None]
    texts = tuple(f"task {i}" for i in range(len(levels)))
    starts = tuple(replace(make_starts(1)[0], instruction=text) for text in texts)
    return Videos(frames, texts, np.arange(len(levels) * 8.0).reshape(-1, 8, 1), starts)


def test_verification_asks_about_successes_only_and_can_only_take_away():
    judge, videos = Brightness(), make_videos([200, 0, 150])
    first = judge.judge(videos)
    again = {0: 0, 2: 255}

    def replay_again(given: Videos, rows: np.ndarray) -> np.ndarray:
        assert given is videos
        return make_videos([again[row] for row in rows]).frames

    verified = verify(first, videos, judge, replay_again)
    _, second = judge.asked
    assert second.instructions == ("task 0", "task 2") and (second.actions == videos.actions[[0, 2]]).all()
    assert verified.success.tolist() == [False, False, True]
    assert verified.refuted.tolist() == [True, False, False]
    assert verified.finish_step.tolist() == [3, 8, 3]


def test_nothing_to_verify_asks_nobody():
    judge, videos = Brightness(), make_videos([0])
    verified = verify(judge.judge(videos), videos, judge, lambda videos, rows: 1 / 0)
    assert verified.refuted.tolist() == [False] and len(judge.asked) == 1


def rolled_out(num_chunks: int = 2, world_judges: bool = False):
    groups = tuple(GroupRequest(0, i, i, start, 2, 0) for i, start in enumerate(make_starts()))
    request = RolloutRequest(1, groups, 0, 1.0)
    return rollout_request(make_tiny(), make_environment_world(), request, num_chunks, world_judges=world_judges)


def test_the_same_world_confirms_every_success():
    """The verifier replays the very actions from the very starts: in the same world the videos are the same."""
    videos = rolled_out().videos
    judge = Brightness()
    judge.judge(videos)
    VerifiedJudge(_AlwaysSuccess(judge), make_environment_world()).judge(videos)
    shown, again = judge.asked[-2:]
    assert np.array_equal(shown.frames, again.frames)


class _AlwaysSuccess:
    def __init__(self, inner: Brightness):
        self.inner = inner

    def judge(self, videos: Videos) -> Scores:
        return replace(self.inner.judge(videos), success=np.ones(len(videos), bool))


def test_the_video_judge_follows_the_rule_of_its_reward_model():
    class Model:
        def probabilities(self, videos, instructions):
            return np.tile(np.linspace(0, 1, 8, dtype=np.float32), (len(videos), 1))

        def decide(self, probabilities, min_steps, horizon):
            return decide(probabilities, 0.5, 2, min_steps, horizon)

    early, late = (VideoJudge(Model(), min_steps).judge(make_videos([0])) for min_steps in (0, 7))
    assert early.finish_step.tolist() == [5] and late.finish_step.tolist() == [7]


def test_the_world_judge_believes_the_world():
    videos = replace(
        make_videos([0, 0, 0]), success=np.array([True, False, False]), lengths=np.array([5, 8, 3]), frames=None
    )
    scores = WorldJudge().judge(videos)
    assert scores.success.tolist() == [True, False, False]
    assert scores.finish_step.tolist() == [5, 8, 3], "a world may end a failure early"
    assert scores.probability.tolist() == [1.0, 0.0, 0.0] and scores.refuted is None


def test_a_judge_without_what_it_judges_by_says_so():
    with pytest.raises(ValueError, match="does not say what succeeded"):
        WorldJudge().judge(make_videos([0]))
    with pytest.raises(ValueError, match="no frames to judge"):
        VideoJudge(None, 0).judge(rolled_out(world_judges=True).videos)


def test_a_disputed_success_can_be_left_open():
    """Under "unknown" it is neither a success nor a failure; whatever is confirmed or failed at first stays known."""
    judge, videos = Brightness(), make_videos([200, 0, 150])
    first = judge.judge(videos)
    again = {0: 0, 2: 255}
    verified = verify(first, videos, judge, lambda _, rows: make_videos([again[i] for i in rows]).frames, "unknown")
    assert verified.success.tolist() == [False, False, True] and verified.refuted.tolist() == [True, False, False]
    assert verified.known.tolist() == [False, True, True]
    assert verify(first, videos, judge, lambda _, rows: make_videos([again[i] for i in rows]).frames).known is None


def test_labels_are_flipped_by_trajectory_and_each_way_on_its_own():
    videos = make_videos([0] * 400)
    groups = [GroupRequest(u, i, i, videos.starts[0], 50, 0) for u in range(4) for i in (0, 1)]
    videos = replace(videos, members=tuple((group, member) for group in groups for member in range(50)))
    truth = np.arange(400) % 2 == 0

    class Known:
        def judge(self, videos: Videos) -> Scores:
            return Scores(truth.copy(), np.where(truth, 5, 8), truth.astype(np.float32))

    assert (NoisyJudge(Known(), 0.0, 0.0).judge(videos).success == truth).all()
    assert (NoisyJudge(Known(), 1.0, 1.0).judge(videos).success == ~truth).all()
    missed = NoisyJudge(Known(), 0.0, 0.2).judge(videos)
    assert not missed.success[~truth].any() and 0.7 < missed.success[truth].mean() < 0.9
    assert (missed.finish_step == np.where(truth, 5, 8)).all(), "what was done until then is what did not succeed"
    again = NoisyJudge(Known(), 0.0, 0.2).judge(videos)
    assert (again.success == missed.success).all(), "a request that is repeated has the same labels"
