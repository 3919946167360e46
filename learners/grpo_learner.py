"""The GRPO learner: admitted groups in, a new weight version out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmpo_ray.algorithms import grpo
from wmpo_ray.batching import Batch, GroupSlice, build_batch
from wmpo_ray.checkpoint import load_checkpoint, optimizer_from_tensors, optimizer_to_tensors, save_checkpoint
from wmpo_ray.config import Config
from wmpo_ray.errors import UserError
from wmpo_ray.files import json_clean
from wmpo_ray.registry import load_policy
from wmpo_ray.runtime_settings import configure_process
from wmpo_ray.types import Trajectories, UpdateResult, WeightVersion

Weights = dict[str, np.ndarray]


class GrpoLearner:
    """Owns the policy that is trained and its optimizer; one `update` for each batch of groups."""

    def __init__(self, config: Config, policy_dir: str, checkpoint_dir: str):
        configure_process(config.cluster.threads_per_process)
        self.config = config
        self.policy = load_policy(config.policy.kind, policy_dir)
        self.policy.eval()  # no dropout: behaviour and learner log-probabilities must agree
        settings = config.grpo
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.checkpoint_dir = Path(checkpoint_dir)
        self.num_updates = 0
        self.num_skipped = 0
        self._history: list[dict] = []  # metrics of every update, kept with the checkpoint

    # -- weights -------------------------------------------------------------------------------------------------

    def weights(self) -> tuple[WeightVersion, Weights]:
        """Version and a copy of the policy's weights."""
        weights = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.policy.state_dict().items()}
        return WeightVersion(self.num_updates, weights_digest(weights)), weights

    def resume(self) -> tuple[int, list[dict], list[str]]:
        """Load the newest valid checkpoint: updates behind it, their metrics, and what was wrong with newer ones."""
        problems: list[str] = []
        checkpoint = load_checkpoint(self.checkpoint_dir, problems.append)
        if checkpoint is None:
            return 0, [], problems
        tensors = checkpoint.tensors
        self.policy.load_state_dict({k[len("policy.") :]: v for k, v in tensors.items() if k.startswith("policy.")})
        state = {k[len("optimizer.") :]: v for k, v in tensors.items() if k.startswith("optimizer.")}
        optimizer_from_tensors(self.optimizer, state, checkpoint.meta["optimizer"])
        self.num_updates = checkpoint.meta["num_updates"]
        self.num_skipped = checkpoint.meta["num_skipped"]
        self._history = checkpoint.meta["metrics"]
        return self.num_updates, self._history, problems

    def _save(self) -> None:
        state, meta = optimizer_to_tensors(self.optimizer)
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in state.items()}
        record = {
            "optimizer": meta,
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
            "metrics": self._history,
        }
        save_checkpoint(self.checkpoint_dir, self.num_updates, tensors, record, self.config.checkpoint.keep)

    # -- training ------------------------------------------------------------------------------------------------

    def update(
        self, groups: Sequence[GroupSlice], driver_metrics: dict[str, float], *sources: Trajectories
    ) -> tuple[UpdateResult, Weights]:
        """Train on the groups in the order given, save a checkpoint if one is due, return the new weights.

        Raises UserError after `grpo.max_skipped_steps` steps whose loss or gradient is not finite.
        """
        started = time.monotonic()
        batch = build_batch(groups, sources)
        size = self.config.grpo.minibatch_trajectories
        parts: list[dict[str, float]] = []
        distance = self._logprob_distance(batch, slice(0, size))
        for _ in range(self.config.grpo.num_epochs):
            for first in range(0, len(batch.frames), size):
                parts.append(self._step(batch, slice(first, first + size)))
        metrics = {key: float(np.mean([part[key] for part in parts if key in part])) for key in parts[0]}
        metrics |= driver_metrics
        metrics["policy/logprob_distance"] = distance
        metrics["policy/skipped_steps"] = self.num_skipped
        self.num_updates += 1
        metrics["time/update_s"] = time.monotonic() - started
        self._history = [*self._history, json_clean({"update": self.num_updates, **metrics})]
        last = self.num_updates == self.config.grpo.num_updates
        if self.num_updates % self.config.checkpoint.every_updates == 0 or last:
            self._save()
        version, weights = self.weights()
        return UpdateResult(version, metrics), weights

    def _step(self, batch: Batch, rows: slice) -> dict[str, float]:
        """One optimizer step on a contiguous mini-batch of trajectories."""
        logprobs = self._logprobs(batch, rows)
        loss, metrics = grpo.loss(
            logprobs,
            batch.behavior_logprobs[rows],
            batch.advantage[rows],
            batch.mask[rows],
            self.config.grpo.clip_low,
            self.config.grpo.clip_high,
            self.config.grpo.ratio,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grpo.max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            self._count_skip()
        else:
            self.optimizer.step()
        figures = {key: float(value) for key, value in metrics.items()}
        return {"policy/loss": float(loss.detach()), "policy/grad_norm": float(norm), **figures}

    def _logprobs(self, batch: Batch, rows: slice) -> Tensor:
        """Log-probabilities [b, N, L] of the chunks that were decided before the finish step, 0 elsewhere."""
        mask = batch.mask[rows].any(-1)
        decided = mask.nonzero()
        frames = batch.frames[rows][decided[:, 0].numpy(), decided[:, 1].numpy()]
        instructions = batch.instructions[rows]
        texts = [instructions[i] for i in decided[:, 0].tolist()]
        tokens = batch.tokens[rows][mask]
        chosen = self.policy.log_prob(frames, texts, tokens, self.config.rollout.temperature)
        # Masked positions take the behaviour's value: their ratio is 1 and they carry no gradient.
        return batch.behavior_logprobs[rows].masked_scatter(mask[..., None].expand(batch.mask[rows].shape), chosen)

    @torch.no_grad()
    def _logprob_distance(self, batch: Batch, rows: slice) -> float:
        """Mean distance per token between log-probabilities of sampling time and recomputed ones, same weights."""
        executed = batch.mask[rows]
        return float((self._logprobs(batch, rows) - batch.behavior_logprobs[rows]).abs()[executed].mean())

    def _count_skip(self) -> None:
        self.num_skipped += 1
        if self.num_skipped >= self.config.grpo.max_skipped_steps:
            raise UserError(
                f"{self.num_skipped} optimizer steps had a loss or gradient that is not finite "
                f"(update {self.num_updates + 1}); lower grpo.learning_rate={self.config.grpo.learning_rate}, or "
                f"raise grpo.max_skipped_steps={self.config.grpo.max_skipped_steps}"
            )

    def save_policy(self, path: str) -> str:
        self.policy.save_pretrained(path)
        return path


def weights_digest(weights: Weights) -> str:
    """Hash of names, shapes and values, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{weights[name].shape}{weights[name].dtype}".encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()[:16]
