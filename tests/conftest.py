"""One thread for every test: the sums are in one order, and two cores are not fought over. Ray with a token of its own."""

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch

from cluster.host.security import TOKEN_PATH, prepare_ray
from tests.support.leftovers import Leftovers
from wmpo_client.token_file import TOKEN

# Before anything imports ray, which reads it then.
FOLDER = Path(tempfile.mkdtemp(prefix="wt-"))  # a short name: Ray's sockets below it have 107 characters
os.environ[TOKEN_PATH] = str(FOLDER / "token")
os.environ["RAY_TMPDIR"] = str(FOLDER)  # the processes that share the tests would find each other's clusters
prepare_ray("")
os.environ[TOKEN] = "a-token-of-the-tests-0123456789"  # of robots and simulators
os.environ.setdefault("RAY_worker_niceness", "0")  # workers are what is tested: not after whatever else runs


# How long an example takes says more about the machine than about what is tested.
hypothesis.settings.register_profile("wmpo", deadline=None)
hypothesis.settings.load_profile("wmpo")

LEFTOVERS = Leftovers(grace_s=20)  # the daemons of a Ray that was shut down take some seconds


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LEFTOVERS)


@pytest.fixture(scope="session")
def leftovers() -> Leftovers:
    """The processes that tests have started and that still run."""
    return LEFTOVERS


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """What a run sets in its process must not reach the next test: bfloat16 products differ with the batch's size."""
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)
