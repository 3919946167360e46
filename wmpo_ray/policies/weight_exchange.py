"""The two ends of the weights' way: the learner encodes versions, a replica puts them into its policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from wmpo_ray.config.cluster import WeightsConfig
from wmpo_ray.core.errors import ConfigError
from wmpo_ray.core.interfaces import Policy
from wmpo_ray.core.types import WeightVersion
from wmpo_ray.policies.staged_weights import StagedWeights, name_step
from wmpo_ray.policies.weight_payload import (
    Changed,
    WeightMismatchError,
    WeightPayload,
    WireTensor,
    _check_tensor,
    _combine,
    _delta,
    _encode,
    _hash_tensor,
    _round,
    _write,
    weights_digest,
)

UNKNOWN_VERSION = WeightVersion(-1, "")  # of a replica that has loaded nothing yet


def trained_state_names(policy: Any, trained: Iterable[str]) -> set[str]:
    """Names in the state dict of the given parameters; one that is shared has several."""
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    wanted = {id(parameters[name]) for name in trained if name in parameters}
    return {name for name, parameter in parameters.items() if id(parameter) in wanted}


class WeightEncoder:
    """The learner's side: copies of the policy's weights, full and compact.

    `trained` names the parameters that training changes; only `weights.payload = "adapter"` uses it. `last` is the delta
    from the latest step to the version encoded last, where there was one and the version's own delta is larger. Raises
    ConfigError where an adapter would hold nothing.
    """

    def __init__(
        self, policy: Policy | nn.Module, settings: WeightsConfig, trained: Iterable[str], num_threads: int = 1
    ):
        self._policy, self._settings, self._num_threads = policy, settings, num_threads
        self._trained = trained_state_names(policy, trained)
        self._previous: WeightPayload | None = None  # kept for the next delta only
        self._step: WeightPayload | None = None  # the latest step since, with whole tensors
        self.last: WeightPayload | None = None
        if settings.payload == "adapter" and not self._trained:
            raise ConfigError(
                'weights.payload="adapter" sends the trained parameters and there is none; name some with '
                'grpo.trained_parameters, or set weights.payload="full"'
            )

    def encode(self, num_updates: int) -> tuple[WeightVersion, WeightPayload, WeightPayload | None]:
        """Version, full payload and compact payload of the weights as they are now.

        There is no compact payload under `weights.payload = "full"`, nor in the first call of a run or a resumed run
        under "delta". Nothing that was returned changes later.
        """
        dtype = self._settings.dtype
        tensors = {name: _encode(tensor, dtype) for name, tensor in self._policy.state_dict().items()}
        version = WeightVersion(num_updates, self._digest(tensors))
        full = WeightPayload("full", version, dtype, tensors)
        compact = None
        if self._settings.payload == "adapter":
            chosen = {name: tensor for name, tensor in tensors.items() if name in self._trained}
            compact = WeightPayload("adapter", version, dtype, chosen)
        elif self._settings.payload == "delta":
            compact = self._delta_to(full, self._previous)
            last, self._step = self._delta_to(full, self._step), None
            self.last = last if last is not None and compact is not None and last.nbytes < compact.nbytes else None
            self._previous = full
        return version, full, compact

    def encode_step(self) -> WeightPayload | None:
        """The delta from the latest step, or the latest version, to the weights as they are inside an update.

        It has a name in place of a digest. None where there is no version to start from, or no payload "delta".
        """
        before = self._step or self._previous
        if before is None:
            return None
        dtype = self._settings.dtype
        tensors = {name: _encode(tensor, dtype) for name, tensor in self._policy.state_dict().items()}
        now = WeightPayload("full", before.version, dtype, tensors)
        step = name_step(_delta(before, now, self._num_threads))
        self._step = replace(now, version=step.version)
        return step

    def _delta_to(self, full: WeightPayload, before: WeightPayload | None) -> WeightPayload | None:
        return _delta(before, full, self._num_threads) if before is not None else None

    def _digest(self, tensors: Mapping[str, WireTensor]) -> str:
        def hash_one(name: str) -> bytes:
            tensor = tensors[name]
            return _hash_tensor(name, tensor.shape, tensor.dtype, tensor.bits)

        return _combine(sorted(tensors), hash_one, self._num_threads)


class WeightReceiver:
    """A replica's side: puts payloads into the policy and says what it then holds.

    `stage` may be called in another thread while the policy acts.
    """

    def __init__(self, policy: Policy | nn.Module, num_threads: int = 1):
        self._policy, self._num_threads = policy, num_threads
        self.version = UNKNOWN_VERSION
        self._staged: StagedWeights | None = None
        self._lock = Lock()  # one reads the policy's weights to stage others, one writes them

    def stage(self, step: WeightPayload) -> str:
        """Put a step of an update aside; returns the name of the step that is staged, "" where there is none.

        One that does not follow what is staged, or the version held, changes nothing: the replica has missed a step and
        is sent more at the update's end.
        """
        with self._lock:
            held, staged = self.version.digest, self._staged
            if step.base == held:
                staged = StagedWeights(held)
            if staged is None or staged.origin != held or staged.name != step.base:
                return staged.name if staged is not None else ""
            self._staged = None  # until all of it is there
            staged.add(step, self._policy.state_dict())
            self._staged = staged
            return staged.name

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Inside the block other weights may be loaded; afterwards those of before are back, staged ones too."""
        held, staged = self.version, self._staged
        kept = None if held == UNKNOWN_VERSION else {k: v.clone() for k, v in self._policy.state_dict().items()}
        try:
            yield
        finally:
            if kept is not None:
                with self._lock:
                    self._policy.load_state_dict(kept)
                    self.version, self._staged = held, staged

    def load(self, payload: WeightPayload) -> WeightVersion:
        """Apply a payload; the result carries the digest of what the policy holds now, which the caller compares.

        A delta may also start from the step that is staged. Raises WeightMismatchError, before anything is changed, for a
        delta on another version than the one held, and for names, shapes, dtypes or indices that do not fit.
        """
        with self._lock:
            return self._load(payload)

    def _load(self, payload: WeightPayload) -> WeightVersion:
        state = self._policy.state_dict()
        staged, self._staged = self._staged, None
        if staged is not None and staged.origin == self.version.digest and payload.base == staged.name:
            payload = staged.finish(payload, state)
        changed = self._check(payload, state)
        self.version = UNKNOWN_VERSION  # until all of it is in place
        with torch.no_grad():
            for name, tensor in state.items():
                if name in payload.tensors:
                    _write(tensor, payload.tensors[name], changed.pop(name))
                elif payload.kind == "adapter":
                    _round(tensor, payload.dtype)
        digest = weights_digest(self._policy.state_dict(), payload.dtype, self._num_threads)
        self.version = WeightVersion(payload.version.num_updates, digest)
        return self.version

    def _check(self, payload: WeightPayload, state: Mapping[str, Tensor]) -> dict[str, Changed | None]:
        """New values of every tensor that a delta changes, None for whole ones."""
        if payload.kind == "delta" and payload.base != self.version.digest:
            raise WeightMismatchError(
                f"the delta to update {payload.version.num_updates} starts from weights {payload.base!r} and this "
                f"replica holds {self.version.digest!r}"
            )
        unknown = sorted(payload.tensors.keys() - state.keys())
        missing = sorted(state.keys() - payload.tensors.keys()) if payload.kind == "full" else []
        if unknown or missing:
            raise WeightMismatchError(
                f"a {payload.kind} payload does not fit the policy: unknown tensors {unknown[:3]}, "
                f"missing tensors {missing[:3]}"
            )

        def check(name: str) -> Changed | None:
            return _check_tensor(name, payload.tensors[name], state[name], payload)

        with ThreadPoolExecutor(self._num_threads) as threads:
            return dict(zip(payload.tensors, threads.map(check, payload.tensors), strict=True))
