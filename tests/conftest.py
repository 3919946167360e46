"""One thread for every test: the sums are in one order, and two cores are not fought over."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
