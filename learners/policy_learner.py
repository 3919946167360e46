"""The learner: trains on admitted groups, or on sampled recorded episodes; each update gives a new weight version."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from learners.divergence import check_num_skipped, check_update, was_skipped
from learners.gradient import GradientSum
from learners.learner_checkpoint import LearnerCheckpoints
from learners.minibatches import Block, minibatches_of
from learners.policy_files import save_policy
from learners.published_weights import PublishedWeights
from learners.sharding import ALONE, MetricMeans, Ranks, whole
from learners.update_in_progress import OnlineUpdate, UpdateInProgress
from wmpo_ray.algorithms.base import OfflineAlgorithm, OnlineAlgorithm, Recorded, make_algorithm
from wmpo_ray.algorithms.batching import GroupSlice, blocks_of
from wmpo_ray.config.run import Config
from wmpo_ray.config.stretches import first_update
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import json_clean
from wmpo_ray.core.learner_types import LearnerState, StepFacts, UpdateFacts, UpdateResult
from wmpo_ray.core.observations import Observation
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import Trajectories, WeightVersion
from wmpo_ray.data.episodes import concatenate_episodes
from wmpo_ray.data.spool import load_trajectories
from wmpo_ray.data.store import load_episodes
from wmpo_ray.policies.weight_payload import WeightPayload
from wmpo_ray.registry import load_policy
from wmpo_ray.runs.best_policy import candidate_path, is_candidate


class Spooled(NamedTuple):
    """Trajectories that the learner reads from disk because the actor that imagined them is gone."""

    path: str
    sha256: str


class PolicyLearner:
    """Owns the trained policy and its optimizer; runs the configured algorithm.

    One `update` for each batch of groups, the first of which may come before in `update_part`; for an offline algorithm,
    one `update_recorded` for each draw of episodes.

    In several processes (`cluster.learner_ranks`) each of them calls the same methods with the same arguments; rank 0
    has the results.
    """

    def __init__(self, config: Config, policy_dir: str, checkpoint_dir: str, ranks: Ranks = ALONE):
        configure_process(config.cluster.threads_per_process)
        self.config, self.ranks, self._policy_dir = config, ranks, policy_dir
        self.settings, self.algorithm = config.training, make_algorithm(config)
        self.policy = load_policy(config, policy_dir, training=True)
        self.policy.eval()  # no dropout: behaviour and learner log-probabilities must agree
        self._trained = self._choose_parameters()
        ranks.shard(self.policy, self._compute_dtype)
        self.optimizer = torch.optim.AdamW(
            [parameter for name, parameter in self.policy.named_parameters() if name in self._trained],
            self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        root = Path(checkpoint_dir)
        self.checkpoints = LearnerCheckpoints(root, config.checkpoint, self.policy, self.optimizer, ranks)
        self.published = PublishedWeights(config, self.policy, self._trained, ranks)
        self.num_updates = 0
        self.num_skipped = 0
        self.num_beats = 0
        self._history: list[dict] = []  # metrics of every update, saved with the checkpoint
        self._last_keys: list[tuple[int, int]] = []
        self._recorded: Recorded | None = None
        self._update: OnlineUpdate | None = None  # in progress
        self._gradient: GradientSum | None = None  # of a mini-batch in progress

    def _choose_parameters(self) -> set[str]:
        pattern = re.compile(self.config.trained_parameters)
        # With adapters, only these are trainable in the first place.
        chosen = {name for name, p in self.policy.named_parameters() if p.requires_grad and pattern.search(name)}
        if not chosen:
            section = self.config.algorithm.section
            raise ConfigError(f"{section}.trained_parameters={pattern.pattern!r} matches no parameter of the policy")
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(name in chosen)
        return chosen

    @property
    def _compute_dtype(self) -> torch.dtype | None:
        """The dtype in which sharded weights are gathered; an unsharded policy casts by itself."""
        return torch.bfloat16 if self.config.policy.compute_dtype == "bfloat16" else None

    # -- weights -------------------------------------------------------------------------------------------------

    def resume(self, *episodes: str) -> LearnerState:
        """Load the newest valid checkpoint, if there is one; returns the learner's state.

        `episodes`: the files that an offline algorithm learns from. Called once, while the policy is the base policy.
        """
        if episodes:
            assert isinstance(self.algorithm, OfflineAlgorithm)
            recorded = concatenate_episodes([load_episodes(Path(path)) for path in episodes])
            self._recorded = self.algorithm.prepare(self.policy, recorded, self.ranks, self.count_beat)
        problems: list[str] = []
        checkpoint = self.checkpoints.load(problems)
        if checkpoint is not None:
            meta, earlier = checkpoint
            self.num_updates, self.num_skipped = meta["num_updates"], meta["num_skipped"]
            self._history = meta["metrics"]
            self.published.digests |= {int(version): digest for version, digest in meta["digests"].items()}
            self._last_keys = [(update, attempt) for update, attempt in meta["groups"]]
            self.published.earlier.extend(earlier.items())
        if self.num_updates < (first := first_update(config := self.config)):
            raise UserError(
                f"{self.checkpoints.root}: the newest usable checkpoint has {self.num_updates} updates, and these settings "
                f"hold after {first} (schedule.earlier of {config.name}); resume the run, which goes on with those before"
            )
        version, _, _ = self.published.publish(self.num_updates)
        return LearnerState(version, dict(self.published.digests), self._history, self._last_keys, problems)

    def weights(self, num_updates: int) -> tuple[WeightVersion, WeightPayload | None]:
        """The weights of a version: the present one, or one of the `filter.max_staleness` before it."""
        return self.published.of(num_updates)

    def step_weights(self) -> tuple[StepFacts, WeightPayload | None]:
        """Inside an update: what changed since the step before, or since the version, for replicas to put aside."""
        return self.published.step()

    def last_step(self) -> WeightPayload | None:
        """What changed in the last step of the latest update."""
        return self.published.take_last_step()

    # -- training ------------------------------------------------------------------------------------------------

    def update(
        self, groups: Sequence[GroupSlice], facts: UpdateFacts, *sources: Trajectories | Spooled
    ) -> tuple[UpdateResult, WeightPayload | None, WeightPayload | None]:
        """Train on the groups in the order given, save a checkpoint if one is due, return the new weights.

        `groups`: the batch, without the `facts.num_given` groups that have come in parts. Raises UserError after
        `max_skipped_steps` steps whose loss or gradient is not finite, SpoolError where spooled trajectories cannot be read.
        """
        update = self._ongoing()
        update.give(facts.num_given, groups, map(_open, sources), is_last=True)
        self._update = None
        return self._conclude(update, update.batch_metrics(), facts)

    def update_part(
        self, update: int, first: int, groups: Sequence[GroupSlice], *sources: Trajectories | Spooled
    ) -> int:
        """Begin the update after `update` others, or go on with it: take the steps of the mini-batches that are complete.

        With `groups_per_pass`, what is complete of the next mini-batch is added to its gradient.

        groups: those from number `first` of its batch on; the learner ignores what it was given before. Nothing is
        published or saved but, where they are wanted, checkpoints inside the update. Returns the number of groups so far.
        Weights of earlier versions are not kept meanwhile, so this is for `filter.max_staleness` = 0. Raises as `update`.
        """
        assert update == self.num_updates, f"update {update} is not the next of a learner at {self.num_updates}"
        ongoing = self._ongoing()
        ongoing.give(first, groups, map(_open, sources), is_last=False)
        return ongoing.num_groups

    def update_recorded(self) -> UpdateResult:
        """Train on the next sample of recorded episodes; otherwise like `update`."""
        assert self._recorded is not None
        started = time.monotonic()
        with span("batch"):
            batch = self._recorded.batch(self.num_updates)
        self.published.keep(self.num_updates)
        update = UpdateInProgress(self)
        minibatches = minibatches_of(batch, self.settings.minibatch_trajectories, update.is_signed)
        update.train(minibatches, len(minibatches))
        update.seconds = time.monotonic() - started
        return self._conclude(update, batch.metrics, UpdateFacts({}, [], 0))[0]

    def _ongoing(self) -> OnlineUpdate:
        """The update in progress, or a new one."""
        if self._update is None:
            assert isinstance(self.algorithm, OnlineAlgorithm)
            self.published.keep(self.num_updates)
            self._update = OnlineUpdate(self, self.algorithm)
        return self._update

    def _conclude(
        self, update: UpdateInProgress, metrics: dict[str, float], facts: UpdateFacts
    ) -> tuple[UpdateResult, WeightPayload | None, WeightPayload | None]:
        """All steps are taken: check, count, encode and save the weights."""
        started = time.monotonic()
        with span("policy"):
            num_bad = self._num_bad(update.first_seen)
            check_update(update.are_skipped, num_bad, self.num_updates + 1, self._section, self.settings)
        metrics = update.metrics() | metrics | facts.metrics
        metrics["policy/skipped_steps"] = self.num_skipped
        self.num_updates += 1
        self._last_keys = facts.keys
        metrics["time/update_s"] = update.seconds + time.monotonic() - started
        self._history = [*self._history, json_clean({"update": self.num_updates, **metrics})]
        with span("encode"):
            version, full, compact = self.published.publish(self.num_updates)
        if is_candidate(self.config, self.num_updates):  # before the checkpoint: a resumed run has both or neither
            with span("checkpoint"):
                self.save_policy(str(candidate_path(self.checkpoints.root, self.num_updates)))
        last = self.num_updates == self.settings.num_updates
        if self.num_updates % self.config.checkpoint.every_updates == 0 or last:
            with span("checkpoint"):
                self._save(facts.ledger_offset)
        result = UpdateResult(version, metrics, self.checkpoints.oldest, self.published.last_step)
        return result, full, compact

    def _save(self, ledger_offset: int) -> None:
        facts = {
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
            "metrics": self._history,
            "digests": {str(version): digest for version, digest in self.published.digests.items()},
            "groups": [list(key) for key in self._last_keys],
            "ledger_offset": ledger_offset,
            "earlier": [version for version, _ in self.published.earlier],
        }
        self.checkpoints.save(self.num_updates, facts, dict(self.published.earlier))

    @torch.no_grad()
    def measure(self, block: Block, means: MetricMeans) -> None:
        """Add metrics that the algorithm computes before the first step."""
        for measure in self.algorithm.measures(self.policy, block.batch, block.rows, self.ranks):
            means.add(measure.metrics, measure.weight)

    def _num_bad(self, seen: Observation) -> int:
        """Number of non-finite log-probabilities of the updated policy's actions at an observation of the batch."""
        decision = self.policy.act(seen, self.config.rollout.temperature, [0])
        return int((~decision.logprobs.isfinite()).sum())

    @property
    def _section(self) -> str:
        return self.config.algorithm.section

    def accumulate(self, block: Block) -> GradientSum:
        """Add a block to the gradient of its mini-batch; the first one of a mini-batch begins it."""
        if block.is_first:
            self.optimizer.zero_grad(set_to_none=True)
            has_several = blocks_of(self.config).has_several
            self._gradient = GradientSum(self.algorithm, self.policy, self.ranks, has_several)
        assert self._gradient is not None, "the blocks of a mini-batch before this one have not come"
        self._gradient.add(block)
        return self._gradient

    def take_step(self, block: Block) -> dict[str, float]:
        """One optimizer step on a contiguous mini-batch of trajectories, which ends with this block."""
        (loss, metrics), self._gradient = self.accumulate(block).finish(), None
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)))
        step = {"policy/loss": loss, "policy/grad_norm": norm}
        if was_skipped(step):
            self.num_skipped += 1
            check_num_skipped(self.num_skipped, self.num_updates + 1, self._section, self.settings)
        else:
            self.optimizer.step()
        return {**step, **metrics}

    def count_beat(self) -> None:
        self.num_beats += 1

    def save_policy(self, path: str) -> str:
        """Save the policy as its class does, from rank 0."""
        save_policy(
            self.policy,
            Path(path),
            self.ranks,
            lambda: load_policy(self.config, self._policy_dir, training=True, device="cpu"),
        )
        return path


def _open(source: Trajectories | Spooled) -> Trajectories:
    return load_trajectories(Path(source.path), source.sha256) if isinstance(source, Spooled) else source
