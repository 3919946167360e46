"""The GRPO learner: admitted groups in, a new weight version out."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from learners.learner_checkpoint import GrpoCheckpoints, batch_signature
from learners.sharding import ALONE, Bystander, Figures, Ranks, WholeWeights, whole
from wmpo_ray.algorithms import grpo
from wmpo_ray.algorithms.batching import Batch, GroupSlice, build_batch
from wmpo_ray.config.run import Config
from wmpo_ray.core.errors import ConfigError, UserError
from wmpo_ray.core.files import atomic_directory, json_clean
from wmpo_ray.core.runtime_settings import configure_process
from wmpo_ray.core.timeline import span
from wmpo_ray.core.types import LearnerState, Trajectories, UpdateResult, WeightVersion
from wmpo_ray.data.spool import load_trajectories
from wmpo_ray.policies.weight_payload import WeightEncoder, WeightPayload
from wmpo_ray.registry import load_policy


class Spooled(NamedTuple):
    """Trajectories that the learner reads from the disk: whoever imagined them is gone."""

    path: str
    sha256: str


class UpdateFacts(NamedTuple):
    """What the driver tells of an update; kept with the checkpoint."""

    metrics: dict[str, float]
    keys: list[tuple[int, int]]  # of the groups, in the order of the batch
    ledger_offset: int


class GrpoLearner:
    """Owns the policy that is trained and its optimizer; one `update` for each batch of groups.

    In several processes (`cluster.learner_ranks`) each of them calls the same methods with the same arguments; rank 0
    has the results.
    """

    def __init__(self, config: Config, policy_dir: str, checkpoint_dir: str, ranks: Ranks = ALONE):
        configure_process(config.cluster.threads_per_process)
        self.config, self.ranks, self._policy_dir = config, ranks, policy_dir
        self.policy = load_policy(config, policy_dir, training=True)
        self.policy.eval()  # no dropout: behaviour and learner log-probabilities must agree
        settings = config.grpo
        self._trained = self._choose_parameters()
        ranks.shard(self.policy, self._compute_dtype)
        self.optimizer = torch.optim.AdamW(
            [parameter for name, parameter in self.policy.named_parameters() if name in self._trained],
            settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.checkpoints = GrpoCheckpoints(Path(checkpoint_dir), config.checkpoint, self.policy, self.optimizer, ranks)
        self.encoder = self._make_encoder()
        self.num_updates = 0
        self.num_skipped = 0
        self.num_beats = 0
        self._history: list[dict] = []  # metrics of every update, kept with the checkpoint
        self._digests: dict[int, str] = {}
        self._last_keys: list[tuple[int, int]] = []
        self._payloads: dict[int, tuple[WeightVersion, WeightPayload | None]] = {}
        self._earlier: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=config.filter.max_staleness)

    def _choose_parameters(self) -> set[str]:
        pattern = re.compile(self.config.trained_parameters)
        # With adapters, only they are open to training in the first place.
        chosen = {name for name, p in self.policy.named_parameters() if p.requires_grad and pattern.search(name)}
        if not chosen:
            raise ConfigError(f"grpo.trained_parameters={pattern.pattern!r} matches no parameter of the policy")
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(name in chosen)
        return chosen

    @property
    def _compute_dtype(self) -> torch.dtype | None:
        """What sharded weights are gathered in; alone, the policy itself computes in less than it keeps."""
        policy = self.config.policy
        return torch.bfloat16 if policy.kind == "openvla_oft" and policy.openvla.compute_dtype == "bfloat16" else None

    # -- weights -------------------------------------------------------------------------------------------------

    def resume(self) -> LearnerState:
        """Load the newest valid checkpoint, if there is one, and say where that leaves the learner."""
        problems: list[str] = []
        checkpoint = self.checkpoints.load(problems)
        if checkpoint is not None:
            meta, earlier = checkpoint
            self.num_updates, self.num_skipped = meta["num_updates"], meta["num_skipped"]
            self._history = meta["metrics"]
            self._digests = {int(version): digest for version, digest in meta["digests"].items()}
            self._last_keys = [(update, attempt) for update, attempt in meta["groups"]]
            self._earlier.extend(earlier.items())
        version, full, _ = self.encoder.encode(self.num_updates)
        self._publish(version, full)
        return LearnerState(version, dict(self._digests), self._history, self._last_keys, problems)

    def weights(self, num_updates: int) -> tuple[WeightVersion, WeightPayload | None]:
        """The weights of a version: the present one, or one of the `filter.max_staleness` before it."""
        if num_updates not in self._payloads:
            version, full, _ = self._make_encoder(dict(self._earlier)[num_updates]).encode(num_updates)
            self._payloads[num_updates] = version, full
        return self._payloads[num_updates]

    def _make_encoder(self, state: dict[str, Tensor] | None = None) -> WeightEncoder | Bystander:
        """Of the weights as they are now, or of a state kept from before."""
        weights: Any = WholeWeights(self.policy, state)
        if not self.ranks.is_first:
            return Bystander(weights)
        return WeightEncoder(weights, self.config.weights, self._trained)

    def _publish(self, version: WeightVersion, full: WeightPayload | None) -> None:
        self._digests[version.num_updates] = version.digest
        self._payloads[version.num_updates] = version, full
        for old in [v for v in self._payloads if v < version.num_updates - self.config.filter.max_staleness]:
            del self._payloads[old]

    # -- training ------------------------------------------------------------------------------------------------

    def update(
        self, groups: Sequence[GroupSlice], facts: UpdateFacts, *sources: Trajectories | Spooled
    ) -> tuple[UpdateResult, WeightPayload | None, WeightPayload | None]:
        """Train on the groups in the order given, save a checkpoint if one is due, return the new weights.

        Raises UserError after `grpo.max_skipped_steps` steps whose loss or gradient is not finite, SpoolError where
        spooled trajectories cannot be read.
        """
        started = time.monotonic()
        with span("batch"):
            batch = build_batch(groups, [_open(source) for source in sources], self.config.grpo.advantage_std)
        if self._earlier.maxlen:
            before = {name: tensor.detach().clone() for name, tensor in self.policy.state_dict().items()}
            self._earlier.append((self.num_updates, before))
        metrics = self._train(batch) | {"policy/advantage_std": float(batch.advantage.std())} | facts.metrics
        metrics["policy/skipped_steps"] = self.num_skipped
        self.num_updates += 1
        self._last_keys = facts.keys
        metrics["time/update_s"] = time.monotonic() - started
        self._history = [*self._history, json_clean({"update": self.num_updates, **metrics})]
        with span("encode"):
            version, full, compact = self.encoder.encode(self.num_updates)
        self._publish(version, full)
        last = self.num_updates == self.config.grpo.num_updates
        if self.num_updates % self.config.checkpoint.every_updates == 0 or last:
            with span("checkpoint"):
                self._save(facts.ledger_offset)
        return UpdateResult(version, metrics, self.checkpoints.oldest), full, compact

    def _save(self, ledger_offset: int) -> None:
        facts = {
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
            "metrics": self._history,
            "digests": {str(version): digest for version, digest in self._digests.items()},
            "groups": [list(key) for key in self._last_keys],
            "ledger_offset": ledger_offset,
            "earlier": [version for version, _ in self._earlier],
        }
        self.checkpoints.save(self.num_updates, facts, dict(self._earlier))

    def _train(self, batch: Batch) -> dict[str, float]:
        """All optimizer steps of an update, from where it was interrupted if it was; the mean of their figures."""
        size, every = self.config.grpo.minibatch_trajectories, self.config.checkpoint.every_optimizer_steps
        minibatches = [slice(first, first + size) for first in range(0, len(batch.frames), size)]
        minibatches *= self.config.grpo.num_epochs
        signature = batch_signature(batch) if every else ""
        done = self.checkpoints.load_step(self.num_updates, signature) if every else None
        parts: list[dict[str, float]] = done["parts"] if done else []
        self.num_skipped = done["num_skipped"] if done else self.num_skipped
        with span("policy"):
            distance = done["distance"] if done else self._logprob_distance(batch, slice(0, size))
        for rows in minibatches[len(parts) :]:
            with span("step"):
                parts.append(self._step(batch, rows))
            self.num_beats += 1
            if every and len(parts) % every == 0 and len(parts) < len(minibatches):
                progress: dict[str, Any] = {"update": self.num_updates, "signature": signature, "distance": distance}
                with span("checkpoint"):
                    self.checkpoints.save_step(
                        len(parts), json_clean({**progress, "parts": parts, "num_skipped": self.num_skipped})
                    )
        # A figure that was not finite is null in a checkpoint.
        figures = {key: [part[key] for part in parts if part.get(key) is not None] for key in parts[0]}
        metrics = {key: float(np.mean(values)) if values else math.nan for key, values in figures.items()}
        return metrics | {"policy/logprob_distance": distance}

    def _step(self, batch: Batch, rows: slice) -> dict[str, float]:
        """One optimizer step on a contiguous mini-batch of trajectories."""
        self.optimizer.zero_grad(set_to_none=True)
        figures, loss = Figures(), 0.0
        for part in self._parts(batch, rows):
            part_loss, metrics = self._loss(batch, rows, part)
            part_loss.backward()
            loss += float(part_loss.detach())
            figures.add(metrics, float(self._num_ratios(batch.mask[rows] & part[..., None]).sum()))
        loss = float(self.ranks.total(torch.tensor([loss], dtype=torch.float64)))
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grpo.max_grad_norm)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._count_skip()
        else:
            self.optimizer.step()
        return {"policy/loss": loss, "policy/grad_norm": norm, **figures.over(self.ranks)}

    def _parts(self, batch: Batch, rows: slice) -> list[Tensor]:
        """The chunks [b, N] bool of a mini-batch that this rank computes, pass by pass: those before the finish step."""
        decided = batch.mask[rows].any(-1)
        parts = []
        for places in self.ranks.parts(decided.flatten().nonzero()[:, 0], self.config.grpo.chunks_per_pass):
            part = torch.zeros(decided.numel(), dtype=torch.bool)
            part[places] = True
            parts.append(part.view_as(decided))
        return parts

    def _loss(self, batch: Batch, rows: slice, part: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a part adds to the loss of its mini-batch, and figures of the part."""
        settings, mask = self.config.grpo, batch.mask[rows] & part[..., None]
        # The loss is a mean over each trajectory: a part of one weighs as much as its share of it.
        share = self._num_ratios(mask) / self._num_ratios(batch.mask[rows]).clamp_min(1)
        return grpo.loss(
            self._logprobs(batch, rows, part),
            batch.behavior_logprobs[rows],
            batch.advantage[rows] * share,
            mask,
            settings.clip_low,
            settings.clip_high,
            settings.ratio,
        )

    def _num_ratios(self, mask: Tensor) -> Tensor:
        """How many ratios each trajectory has [b], for the tokens [b, N, L] of a mask."""
        return mask.any(-1).sum(1) if self.config.grpo.ratio == "chunk" else mask.sum((1, 2))

    def _logprobs(self, batch: Batch, rows: slice, part: Tensor) -> Tensor:
        """Log-probabilities [b, N, L] of the chunks of a part [b, N], the behaviour's elsewhere."""
        places = part.nonzero()
        if not len(places):  # nothing is left for this rank, and the others cannot gather weights without it
            places = batch.mask[rows].any(-1).nonzero()[:1]
        first, second = places.unbind(1)
        texts = batch.instructions[rows]
        chosen = self.policy.log_prob(
            batch.frames[rows][first.numpy(), second.numpy()],
            [texts[i] for i in first.tolist()],
            batch.tokens[rows][first, second],
            self.config.rollout.temperature,
        ).cpu()
        behavior = batch.behavior_logprobs[rows]
        if not part.any():
            return behavior + 0.0 * chosen.sum()
        # Masked positions take the behaviour's value: their ratio is 1 and they carry no gradient.
        return behavior.masked_scatter(part[..., None].expand(behavior.shape), chosen)

    @torch.no_grad()
    def _logprob_distance(self, batch: Batch, rows: slice) -> float:
        """Mean distance per token between log-probabilities of sampling time and recomputed ones, same weights."""
        figures = Figures()
        for part in self._parts(batch, rows):
            executed = batch.mask[rows] & part[..., None]
            distance = (self._logprobs(batch, rows, part) - batch.behavior_logprobs[rows]).abs()[executed]
            figures.add({"distance": distance.mean()}, float(executed.sum()))
        return figures.over(self.ranks)["distance"]

    def _count_skip(self) -> None:
        self.num_skipped += 1
        if self.num_skipped >= self.config.grpo.max_skipped_steps:
            raise UserError(
                f"{self.num_skipped} optimizer steps had a loss or gradient that is not finite "
                f"(update {self.num_updates + 1}); lower grpo.learning_rate={self.config.grpo.learning_rate}, which "
                "begins the stage anew, or go on with --resume and "
                f"a higher grpo.max_skipped_steps={self.config.grpo.max_skipped_steps}"
            )

    def save_policy(self, path: str) -> str:
        """Save the policy as its class does, from rank 0."""
        if self.ranks.size == 1:
            with atomic_directory(Path(path)) as folder:
                self.policy.save_pretrained(folder)
            return path
        gathered = WholeWeights(self.policy)
        if not self.ranks.is_first:
            gathered.pass_on()
            return path
        copy = load_policy(self.config, self._policy_dir, training=True, device="cpu")
        state = copy.state_dict()
        for name, tensor in gathered.items():
            state[name].copy_(tensor)
        with atomic_directory(Path(path)) as folder:
            copy.save_pretrained(folder)
        return path


def _open(source: Trajectories | Spooled) -> Trajectories:
    return load_trajectories(Path(source.path), source.sha256) if isinstance(source, Spooled) else source
