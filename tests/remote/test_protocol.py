"""The compiled protocol is that of wmpo.proto, and a client needs nothing of the server."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.support.documents import ROOT
from wmpo_client.protocol import wmpo_pb2, wmpo_pb2_grpc

PROTO = ROOT / "wmpo_ray" / "remote" / "wmpo.proto"
CLIENT = sorted((ROOT / "wmpo_client").rglob("*.py"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> descriptor_pb2.FileDescriptorProto:
    """What this environment's compiler makes of the file."""
    tools = pytest.importorskip("grpc_tools", reason="the dev extra brings the compiler")
    out = tmp_path_factory.mktemp("protocol") / "set"
    include = f"-I{Path(tools.__file__).parent / '_proto'}"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", include]
    subprocess.run([*command, f"--descriptor_set_out={out}", PROTO.name], check=True, cwd=PROTO.parent)
    found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for message in found.file[0].message_type:
        for field in message.field:
            field.ClearField("json_name")  # only some compilers write it
    return found.file[0]


def test_the_compiled_messages_are_those_of_the_file(compiled):
    committed = descriptor_pb2.FileDescriptorProto.FromString(wmpo_pb2.DESCRIPTOR.serialized_pb)
    assert committed == compiled, "run `make protocol`"


def test_the_compiled_services_have_every_method(compiled):
    assert [service.name for service in compiled.service] == ["Policy", "Episodes", "Environments"]
    for service in compiled.service:
        servicer = getattr(wmpo_pb2_grpc, f"{service.name}Servicer")
        methods = {name for name in vars(servicer) if not name.startswith("_")}
        assert methods == {method.name for method in service.method}, "run `make protocol`"


def test_a_client_needs_no_torch_and_nothing_of_the_server():
    modules = [f"wmpo_client.{path.stem}" for path in (ROOT / "wmpo_client").glob("*.py") if path.stem != "__main__"]
    script = f"import sys\nfor each in {modules!r}: __import__(each)\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "wmpo_client" in loaded
    assert not loaded & {"torch", "ray", "pydantic", "transformers", "wmpo_ray", "cluster", "PIL", "scipy"}


@pytest.mark.parametrize("path", CLIENT, ids=lambda path: path.name)
def test_the_client_is_python_3_9(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    unions = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)]
    if unions:
        assert "from __future__ import annotations" in path.read_text()
    strict = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in ("strict", "slots")]
    assert not strict, "zip(strict=...) and dataclass(slots=...) are younger"
