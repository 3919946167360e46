"""Every method of every service, tried without the token."""

from __future__ import annotations

import grpc

from wmpo_client.protocol import wmpo_pb2

STANDARD = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/wmpo.v1.Policy/NoSuchMethod",
)
KEYS = (
    (),
    (("authorization", "Bearer a-wrong-token-0123456789"),),
    (("authorization", "Bearer "),),
    (("authorization", ""),),
    (("token", "Bearer a-wrong-token-0123456789"),),
)


def methods() -> list[str]:
    """Paths of every method that a server of ours may have."""
    services = wmpo_pb2.DESCRIPTOR.services_by_name.values()
    own = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    return [*own, *STANDARD]


def keys_of(token: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """What is tried: nothing, wrong tokens, and the right one in forms that do not count."""
    right = ("authorization", f"Bearer {token}")
    return (*KEYS, (("authorization", token),), (("authorization", f"bearer {token}"),), (right, right))


def open_doors(target: str, token: str) -> tuple[list[str], int]:
    """(methods that answered anything but UNAUTHENTICATED, how many were tried)."""
    found, tried = [], 0
    with grpc.insecure_channel(target) as channel:
        for path in methods():
            for key in keys_of(token):
                tried += 1
                try:
                    next(channel.unary_stream(path)(b"", timeout=10, metadata=key))
                    found.append(path)
                except StopIteration:
                    found.append(path)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                        found.append(f"{path}: {error.code().name}")
    return found, tried
