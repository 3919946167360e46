"""The section of the configuration for simulators that another process serves."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wmpo_ray.core.frame_sizes import FrameSize
from wmpo_ray.core.section import Count, Positive, shown
from wmpo_ray.environments.gymnasium.gymnasium_settings import PlainEnvironmentConfig

Instruction = Annotated[str, Field(min_length=1, max_length=1000)]


class RemoteConfig(PlainEnvironmentConfig):
    """What the simulator is, so that plans and models need no connection; it is compared with what the simulator says."""

    kind: Literal["remote"] = "remote"
    places: ClassVar[frozenset[str]] = frozenset({"address", "ca", "certificate", "key", "patience_s"})
    address: str = ""  # HOST:PORT, as `wmpo simulator` or wmpo_client's environment_server prints it
    ca: str = ""  # file of the authority of the simulator's certificate; "": no TLS, on this machine alone
    certificate: str = ""  # file of our own, where the simulator asks for one
    key: str = ""  # file of its key
    patience_s: Positive = 30.0  # for which a simulator that does not answer is asked again
    frame_size: FrameSize = 16
    action_dim: Count = 3  # D
    instructions: Annotated[tuple[Instruction, ...], Field(min_length=1, max_length=10**4)] = ("do the task",)

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"environment.address = {shown(self.address)}: it must be HOST:PORT of a simulator; start one with "
                "`wmpo simulator` and set environment.address"
            )
        return self
