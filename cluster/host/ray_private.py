"""The names of Ray that are not part of its public interface, all in one place. Tested with Ray 2.60.

After an upgrade of Ray this file, and no other, may have to change. Those of Ray Train are imported when they are first
used: that takes seconds, and most processes never need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from grpc import RpcError
from ray import cloudpickle
from ray._common.utils import reset_ray_address
from ray._private import services as _services
from ray._private import worker as _worker
from ray._private.node import Node
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as _SETUP_HOOK
from ray._private.state import state as _state
from ray._private.utils import read_ray_address

DEPRECATIONS = "ray._common.deprecation"  # the logger that says what Ray will not have for ever

_EXPORT_TIMEOUT_S = 60

# The provider whose nodes are processes of one machine, as a cluster's configuration names it.
FAKE_NODE_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

__all__ = [
    "DEPRECATIONS",
    "FAKE_NODE_PROVIDER",
    "LateNodeError",
    "Node",
    "NodeManager",
    "RpcError",
    "address_from_environment",
    "all_nodes_or_none",
    "autoscaler_config",
    "block_sizes",
    "check_cluster_config",
    "dashboard_url",
    "drain_node",
    "draining_nodes",
    "export_setup_hook",
    "grpc_channel",
    "has_setup_hook",
    "hide_local_clusters",
    "is_token_auth_enabled",
    "raised_in_worker",
    "raylet_pid",
    "read_ray_address",
    "reset_ray_address",
    "train_record_name",
    "trainables_in",
]


def address_from_environment(address: str) -> str:
    """host:port that "auto" stands for; RAY_ADDRESS, where it is set, wins over any address.

    Raises ConnectionError where there is no cluster.
    """
    return _services.get_ray_address_from_environment(address, None)


# What is said of a node itself, of one that the others have not seen, and of a GCS that does not say its port.
_LATE = ("timed out during startup", "Timed out while waiting for nodes", "Timed out waiting for file")


class LateNodeError(Exception):
    """A node was not there within the 30 s that Ray gives it."""


@contextmanager
def all_nodes_or_none() -> Iterator[None]:
    """Ends the processes of every node that is started within it where one of them cannot be.

    Raises LateNodeError where that is because it took too long, for which Ray has neither a setting nor an error.
    """
    nodes: list[Node] = []

    def noted(start: Callable[[Node], None]) -> Callable[[Node], None]:
        def start_and_note(self: Node) -> None:
            nodes.append(self)
            start(self)

        return start_and_note

    try:
        with (
            mock.patch.object(Node, "start_head_processes", noted(Node.start_head_processes)),
            mock.patch.object(Node, "start_ray_processes", noted(Node.start_ray_processes)),
        ):
            yield
    except BaseException as error:
        _worker.shutdown()
        for node in dict.fromkeys(reversed(nodes)):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        if any(sign in str(error) for sign in _LATE):
            raise LateNodeError(str(error)) from error
        raise


def grpc_channel(address: str) -> Any:
    """A channel to a GCS, with TLS where Ray's settings ask for it."""
    from ray._private.grpc_utils import init_grpc_channel

    return init_grpc_channel(address)


def dashboard_url() -> str | None:
    """host:port of the cluster's dashboard; None where there is none."""
    return _worker.get_dashboard_url()


def autoscaler_config() -> Any:
    """The cluster configuration that the autoscaler wrote; None without an autoscaler."""
    return _state.get_cluster_config()


def draining_nodes() -> dict[str, int]:
    """Node -> time of its end, milliseconds since the epoch."""
    return _state.get_draining_nodes()


def drain_node(address: str, node_id: str, deadline_ms: int) -> None:
    """Announce to the GCS at `address` that a node is preempted; milliseconds since the epoch.

    Raises RuntimeError if the GCS does not accept it.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "preempted", deadline_ms)
    if not accepted:
        raise RuntimeError(f"the drain request was not accepted: {why}")


def has_setup_hook() -> bool:
    """Whether the job says what its workers do first; those of its actors that say it themselves would not do that."""
    return _SETUP_HOOK in _worker.global_worker.runtime_env


def export_setup_hook(hook: Callable[[], None]) -> dict[str, str]:
    """Environment variables of an actor's process that make it call `hook` first, which is sent by value.

    A hook that raises, or that cannot be imported, ends the process.
    """
    from ray._private.runtime_env.setup_hook import decode_function_key

    module = sys.modules[hook.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        key = _worker.global_worker.function_actor_manager.export_setup_func(hook, timeout=_EXPORT_TIMEOUT_S)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return {_SETUP_HOOK: decode_function_key(key)}


class NodeManager:
    """The raylet of a node, asked directly. Its methods raise RpcError where it does not answer in time."""

    def __init__(self, address: str, timeout_s: float = 5.0):
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        self._channel = grpc_channel(address)
        self._raylet = NodeManagerServiceStub(self._channel)
        self._timeout_s = timeout_s

    def idle_workers(self, job: bytes) -> Iterator[int]:
        """Process ids of the workers that were started for a job and have run nothing yet."""
        from ray.core.generated.common_pb2 import WorkerType
        from ray.core.generated.node_manager_pb2 import GetNodeStatsRequest

        answer = self._raylet.GetNodeStats(GetNodeStatsRequest(), timeout=self._timeout_s)
        for worker in answer.core_workers_stats:
            is_actor = worker.actor_id.strip(b"\xff") != b""
            is_fresh = not (is_actor or worker.num_running_tasks or worker.num_executed_tasks)
            if worker.worker_type == WorkerType.WORKER and worker.job_id == job and is_fresh:
                yield worker.pid

    def start_workers(self, job: bytes, runtime_env: str, count: int, keep_s: int) -> None:
        """Start workers for a job that wait for actors with this runtime environment, in the words of the raylet."""
        from ray.core.generated.common_pb2 import Language
        from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest

        request = PrestartWorkersRequest(
            language=Language.PYTHON, job_id=job, num_workers=count, keep_alive_duration_secs=keep_s
        )
        request.runtime_env_info.serialized_runtime_env = runtime_env
        self._raylet.PrestartWorkers(request, timeout=self._timeout_s)

    def close(self) -> None:
        self._channel.close()


def raylet_pid(node: Node) -> int:
    """The process of a node that this process started; its workers are the children."""
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid


def is_token_auth_enabled() -> bool:
    """Whether Ray's processes ask each other for a token."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled as is_enabled

    return is_enabled()


def check_cluster_config(config: dict[str, Any]) -> None:
    """What `ray up` checks of its YAML file. Raises ValidationError of jsonschema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def hide_local_clusters() -> AbstractContextManager[Any]:
    """While it is entered, this process finds no cluster of this machine. For tests: others may run one beside them."""
    return mock.patch.object(_services, "find_gcs_addresses", set)


def trainables_in(folder: str) -> AbstractContextManager[Any]:
    """While it is entered, algorithms that are built without Tune make their folders there, not in ~/ray_results."""
    from ray.tune.trainable import trainable

    return mock.patch.object(trainable, "DEFAULT_STORAGE_PATH", folder)


def train_record_name() -> str:
    """The file in which Ray Train keeps a record of a training's checkpoints."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    return CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


def raised_in_worker(failure: Exception) -> Exception:
    """What the training function raised, without what Ray Train wraps it in."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure


def block_sizes(dataset: Any) -> list[int]:
    """Rows of each block of a materialised dataset."""
    return [entry.metadata.num_rows for bundle in dataset.iter_internal_ref_bundles() for entry in bundle.blocks]


def __getattr__(name: str) -> Any:
    """`TorchBackend`: how Ray Train starts the process group of its workers; `ControllerCallback`: runs in its controller."""
    if name == "TorchBackend":
        from ray.train.torch.config import _TorchBackend

        return _TorchBackend
    if name == "ControllerCallback":
        from ray.train.v2._internal.execution.callback import ControllerCallback

        return ControllerCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
