"""Settings for where a run executes and which faults it survives.

None of them changes its result but the threads and, by rounding, the device and how many processes share a training.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from wmpo_ray.core.section import MAX_PROCESSES, Count, Positive, Processes, Section, shown

Cpus = Annotated[float, Field(ge=0, le=4096)]


def _check_size(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """One message where neither form fits, in place of one for each form."""
    try:
        size = validate(tuple(value) if isinstance(value, list) else value)  # JSON has no tuples
    except ValidationError:
        size = None
    if size is None or bounds(size)[1] > MAX_PROCESSES:
        raise ValueError(
            f"cluster.{info.field_name} = {shown(value)}: give a whole number, or [min, max], of at most "
            f"{MAX_PROCESSES:,}; change cluster.{info.field_name}"
        )
    return size


# A fixed number of actors, or (min, max).
Size = Annotated[int | tuple[int, int], WrapValidator(_check_size)]


def bounds(size: Size) -> tuple[int, int]:
    """(min, max) of a number of actors."""
    return size if isinstance(size, tuple) else (size, size)


_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):(\d{1,5})")


def check_address(address: str, key: str = "cluster.address") -> str:
    """Where a driver finds its cluster: "", "auto" or host:port of the GCS. Raises ValueError for anything else."""
    if address in ("", "auto"):
        return address
    match = _HOST_PORT.fullmatch(address)
    if match and 0 < int(match[2]) < 2**16:
        return address
    scheme = address.partition("://")[0]
    reasons = {
        "ray": "a Ray client cannot place actors, that takes a driver inside the cluster",
        "http": "a dashboard takes jobs but no drivers",
        "https": "a dashboard takes jobs but no drivers",
    }
    reason = reasons.get(scheme, "this is no address of a cluster") if "://" in address else "this is no host:port"
    advice = "submit the run with `ray job submit`, or " if scheme in reasons else ""
    raise ValueError(
        f'{key} = {shown(address)}: {reason}; {advice}give "host:port", "auto" for the cluster of this machine, or "" to '
        f"start one; change {key}"
    )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)


class RuntimeEnvConfig(Section):
    """Packages and variables of the environment workers alone, as Ray's `runtime_env` takes them; empty: those of the run.

    A simulator with old pins then stands beside a learner with new ones. Python and Ray must be the run's versions.
    """

    pip: tuple[str, ...] = ()  # requirements, such as "mujoco==2.3.2", added to the packages of the run
    uv: tuple[str, ...] = ()  # the same, installed by uv
    conda: str = ""  # an environment that every node has, or a local environment.yml
    py_executable: str = ""  # a Python interpreter that every node has
    env_vars: tuple[str, ...] = ()  # such as "MUJOCO_GL=osmesa"

    @field_validator("pip", "uv")
    @classmethod
    def _check_requirements(cls, requirements: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in requirements:
            if not text.strip() or "\n" in text:
                raise ValueError(
                    f"cluster.environment_runtime_env.{info.field_name} = {shown(requirements)}: {shown(text)} is no "
                    f"requirement such as 'mujoco==2.3.2'; change cluster.environment_runtime_env.{info.field_name}"
                )
        return requirements

    @field_validator("env_vars")
    @classmethod
    def _check_variables(cls, variables: tuple[str, ...]) -> tuple[str, ...]:
        for text in variables:
            if not _VARIABLE.fullmatch(text):
                raise ValueError(
                    f'cluster.environment_runtime_env.env_vars: {shown(text)} is not "NAME=value"; change '
                    "cluster.environment_runtime_env.env_vars"
                )
        return variables

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        given = [name for name in ("pip", "uv", "conda", "py_executable") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"cluster.environment_runtime_env has {' and '.join(given)}: packages come from one of them; remove the "
                "others"
            )
        return self

    def for_ray(self) -> dict[str, Any]:
        """What Ray takes; {} for the packages and variables of the run."""
        chosen: dict[str, Any] = {name: list(value) for name in ("pip", "uv") if (value := getattr(self, name))}
        chosen |= {name: value for name in ("conda", "py_executable") if (value := getattr(self, name))}
        if self.env_vars:
            chosen["env_vars"] = dict(text.split("=", 1) for text in self.env_vars)
        return chosen


class ClusterConfig(Section):
    imagination_actors: Size = 2  # or [min, max]: elastic
    reward_actors: Size = 1
    # They record, evaluate and, without imagination, make the rollouts. 1: demonstrations, collection and evaluation are
    # done in the driver's own process; more: in that many at most, whose deaths cost a batch each.
    environment_actors: Size = 1
    environment_runtime_env: RuntimeEnvConfig = RuntimeEnvConfig()
    learner_ranks: Processes = 1  # processes that share the learner's weights (FSDP2)
    stream_updates: bool = True  # the learner trains mini-batches while the batch still fills; the same weights
    training_workers: Size = 1  # of the supervised stages; more than one, or [min, max]: Ray Train
    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": cuda in a process that sees a GPU
    threads_per_process: Annotated[int, Field(ge=1, le=4096)] = 1
    # Processes on every node that have imported everything and wait for the next actor: 0.5 GB of memory each.
    spares: Annotated[int, Field(ge=0, le=64)] = 1
    # Spares have also read the models of actors that make rollouts, and, where these have no GPU, hold them loaded.
    spares_load_models: bool = False
    address: str = ""  # a running cluster; "" starts one on this machine

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str) -> str:
        return check_address(address)

    @field_validator("imagination_actors", "reward_actors", "environment_actors")
    @classmethod
    def _check_size(cls, size: Size, info: ValidationInfo) -> Size:
        low, high = bounds(size)
        if not (0 <= low <= high and 1 <= high <= MAX_PROCESSES):
            raise ValueError(
                f"cluster.{info.field_name} = {shown(size)}: a number of actors is 1 or more, or [min, max] with 0 <= min <= "
                f"max and max >= 1, at most {MAX_PROCESSES}; change cluster.{info.field_name}"
            )
        return size

    @field_validator("training_workers")
    @classmethod
    def _check_workers(cls, size: Size) -> Size:
        low, high = bounds(size)
        if not 1 <= low <= high <= MAX_PROCESSES:
            raise ValueError(
                f"cluster.training_workers = {shown(size)}: give a number of workers from 1 to {MAX_PROCESSES}, or "
                f"[min, max] with 1 <= min <= max <= {MAX_PROCESSES}; change cluster.training_workers"
            )
        return size


class RolePlacement(Section):
    """Resources of one actor of a role."""

    cpus: Cpus = 0.0
    gpus: Annotated[float, Field(ge=0, le=128)] = 0.0  # a fraction shares the GPU
    accelerator_type: str = ""  # such as "H100"; "": any
    labels: tuple[str, ...] = ()  # of the node, such as "ray.io/market-type=spot"

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            key, separator, value = label.partition("=")
            if not (key and separator and value):
                raise ValueError(f'label {label!r}: expected "key=value"')
        return labels


class ImaginationPlacement(RolePlacement):
    cpus: Cpus = 0.7


class RewardPlacement(RolePlacement):
    cpus: Cpus = 0.3


class LearnerPlacement(RolePlacement):
    cpus: Cpus = 0.3


class PlacementConfig(Section):
    """Placement of the actors. The policy replica always runs beside its world model, in the imagination actor."""

    layout: Literal["separate", "collocated"] = "separate"  # collocated: the learner shares the first worker's GPU
    imagination: ImaginationPlacement = ImaginationPlacement()
    reward: RewardPlacement = RewardPlacement()
    learner: LearnerPlacement = LearnerPlacement()
    environment: RolePlacement = RolePlacement()  # only evaluates: it waits for free time


class WeightsConfig(Section):
    """How the learner's weights reach the replicas."""

    transport: Literal["object_store", "gloo", "nccl"] = "object_store"
    payload: Literal["full", "adapter", "delta"] = "full"  # all, the trained parameters only, the changed elements only
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights on their way, and so of the behaviour policy
    # Each optimizer step's delta goes out while the update is under way, so that only the last one is left at its end.
    per_step: bool = False
    timeout_s: Positive = 60.0  # of one broadcast in a fixed group

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per_step and self.payload != "delta":
            raise ValueError(
                f'weights.per_step=true sends deltas and weights.payload="{self.payload}"; set weights.payload="delta" '
                "or weights.per_step=false"
            )
        return self


class FaultsConfig(Section):
    """What counts as a fault, and how many faults a run tolerates."""

    heartbeat_every_s: Positive = 2.0
    heartbeat_timeout_s: Positive = 10.0  # an actor that does not answer for so long is replaced
    stall_timeout_s: Positive = 1800.0  # so is one that answers but makes no progress
    start_timeout_s: Positive = 60.0  # so is one whose resources are reserved and that gets no process
    max_start_failures: Count = 3  # of one actor in a row, before the run gives up
    backoff_s: Positive = 0.5  # before the second start in a row; doubles each time
    max_backoff_s: Positive = 30.0
    max_crashes: Count = 3  # of workers under one request, before the request is quarantined
    max_quarantined: Annotated[int, Field(ge=0)] = 16  # groups, before the run gives up
    # How long a run that has begun waits for a cluster that does not answer; Ray's own drivers have 60 s.
    cluster_timeout_s: Annotated[float, Field(ge=0, le=86400)] = 60.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heartbeat_timeout_s <= self.heartbeat_every_s:
            raise ValueError(
                f"faults.heartbeat_timeout_s={self.heartbeat_timeout_s} must be above "
                f"faults.heartbeat_every_s={self.heartbeat_every_s}"
            )
        return self


class CheckpointConfig(Section):
    every_updates: Count = 1
    keep: Count = 2
    every_optimizer_steps: Annotated[int, Field(ge=0)] = 1  # inside an update; 0: only between updates
    every_training_steps: Annotated[int, Field(ge=0)] = 100  # of the supervised stages; 0: never inside a stage


class WandbConfig(Section):
    project: str = "wmpo-ray"
    entity: str = ""  # "": the account's default
    group: str = ""
    mode: Literal["online", "offline"] = "online"


class MlflowConfig(Section):
    tracking_uri: str = ""  # "": $MLFLOW_TRACKING_URI, or MLflow's own default
    experiment: str = "wmpo-ray"


class MonitoringConfig(Section):
    """What a run publishes while it runs."""

    trackers: tuple[str, ...] = ("tensorboard", "prometheus")  # beside metrics.jsonl; also "wandb", "mlflow"
    wandb: WandbConfig = WandbConfig()
    mlflow: MlflowConfig = MlflowConfig()

    metrics: bool = True  # live metrics for Prometheus
    port: Annotated[int, Field(ge=0, le=65535)] = 0  # of the metrics of a run without Ray, on 127.0.0.1; 0: none
    keep_traces: Annotated[int, Field(ge=0)] = 4  # number of updates whose traces are kept
