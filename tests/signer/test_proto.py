"""The generated modules are those of the .proto files beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from notary.proto import health_pb2, instance_pb2, paths, profile_pb2, signer_pb2

ROOT = Path(signer_pb2.__file__).parents[2]


@pytest.mark.parametrize(
    "module", [signer_pb2, health_pb2, instance_pb2, profile_pb2], ids=lambda module: module.__name__
)
def test_the_modules_were_generated_from_these_files(module, tmp_path):
    source = module.DESCRIPTOR.name
    target = tmp_path / "descriptors"
    assert protoc.main(["protoc", f"-I{ROOT}", f"--descriptor_set_out={target}", str(ROOT / source)]) == 0
    (fresh,) = FileDescriptorSet.FromString(target.read_bytes()).file
    for file in (fresh, generated := FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)):
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert generated == fresh, "run `make proto`"


def test_each_method_has_its_path() -> None:
    files = signer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, instance_pb2.DESCRIPTOR
    methods = [method for file in files for each in file.services_by_name.values() for method in each.methods]
    declared = {f"/{method.containing_service.full_name}/{method.name}" for method in methods}
    named = {value for name, value in vars(paths).items() if name.isupper() and value.startswith("/")}
    assert named == declared


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_they_run_on_both_implementations_of_protobuf(implementation: str) -> None:
    program = (
        "from google.protobuf.internal import api_implementation as used\n"
        "from notary.proto import health_pb2, instance_pb2, profile_pb2, signer_pb2 as signer\n"
        "made = signer.Signature(content=b'x', keyInfo=signer.KeyInfo(keyID=signer.KeyID(ID='a')))\n"
        "assert signer.Signature.FromString(made.SerializeToString()) == made\n"
        "print(used.Type())"
    )
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    command = (sys.executable, "-W", "error", "-c", program)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{implementation}\n", "")
