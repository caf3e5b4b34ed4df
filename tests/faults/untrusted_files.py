"""Hostile model files; each writes a trace if code of it runs."""

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.flatten(1))
        return logits


def torch_saved(content: Any, zipped: bool = True) -> bytes:
    torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def tar_saved(content: bytes) -> bytes:
    """The tar archive that torch wrote before version 0.1.10."""
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            (member := tarfile.TarInfo(name)).size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def rewritten(
    content: bytes, change: Callable[[str, bytes], bytes], *added: tuple[str, bytes], compressed: bool = False
) -> bytes:
    """An archive with changed members and with further ones."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(result := io.BytesIO(), "w", method) as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
        for name, data in added:
            after.writestr(name, data)
    return result.getvalue()


def _with_operator(name: str, member: str, data: bytes) -> bytes:
    """A member of a program, in which all operators are replaced by one."""
    if not member.endswith("model.json"):
        return data
    changed, n_changed = re.subn(rb'"target": "torch\.ops\.[^"]*"', f'"target": "{name}"'.encode(), data)
    assert n_changed
    return changed


def in_description(old: bytes, new: str) -> bytes:
    """A program with another text in place of one in its description."""
    quoted = json.dumps(new)[1:-1].encode()
    changed = rewritten(
        program(), lambda name, data: data.replace(old, quoted) if name.endswith("model.json") else data
    )
    assert changed != program()
    return changed


def with_constant(path_name: str, content: bytes) -> bytes:
    """A program with a constant that lies in a further member."""
    sizes = {"sizes": [{"as_int": 1}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}}
    meta = {"dtype": 1, **sizes, "requires_grad": False, "device": {"type": "cpu", "index": None}, "layout": 7}
    about = {"path_name": path_name, "is_param": False, "use_pickle": False, "tensor_meta": meta}
    config = json.dumps({"config": {"evil": about}}).encode()
    return rewritten(
        program(),
        lambda name, data: config if name.endswith("constants_config.json") else data,
        (f"archive/data/constants/{path_name}", content),
    )


def with_example(content: bytes, name: str = "model.pt") -> bytes:
    """A program with another example of its input."""
    with zipfile.ZipFile(io.BytesIO(program())) as before, zipfile.ZipFile(result := io.BytesIO(), "w") as after:
        for member in before.namelist():
            if member.endswith("/model.pt"):
                after.writestr(member.replace("model.pt", name), content)
            else:
                after.writestr(member, before.read(member))
    return result.getvalue()


@cache
def program() -> bytes:
    dynamic = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(
        torch.export.export(Net().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=dynamic), file := io.BytesIO()
    )
    return file.getvalue()


@cache
def script() -> bytes:
    torch.jit.save(torch.jit.script(Net().eval()), file := io.BytesIO())
    return file.getvalue()


def onnx_model(location: str | None, folder: Path, length: int = 512, name: str = "") -> bytes:
    """A linear classifier as ONNX; its weight lies in another file if a location is given."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 2], [0.1] * 128)
    if location is not None:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
        (folder / "data.bin").write_bytes(bytes(512))
        (folder.parent / "outside.bin").write_bytes(bytes(512))
        if location == "link.bin":
            (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
    nodes = [helper.make_node("Flatten", ["x"], ["f"], name=name), helper.make_node("MatMul", ["f", "w"], ["y"])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 8, 8]), ("y", ["n", 2]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return content


def onnx_graph(nodes: list[Any], constants: dict[str, Any], inputs: dict[str, int]) -> bytes:
    """An ONNX model whose inputs have the given types, and whose output is ``y``."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, number, ["n", 1, 8, 8]) for name, number in inputs.items()]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 8, 8]))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:-1], ends[-1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def onnx_loop() -> bytes:
    """A loop of 2^62 iterations."""
    from onnx import TensorProto, helper

    ends = {"i": TensorProto.INT64, "c": TensorProto.BOOL, "v": TensorProto.FLOAT}
    nodes = [helper.make_node("Identity", [name], [f"{name}_next"]) for name in ("c", "v")]
    shapes: dict[str, list[Any]] = {"i": [], "c": [], "v": ["n", 1, 8, 8]}
    values = [helper.make_tensor_value_info(name, ends[name], shapes[name]) for name in ends]
    after = [helper.make_tensor_value_info(f"{name}_next", ends[name], shapes[name]) for name in ("c", "v")]
    body = helper.make_graph(nodes, "body", values, after)
    loop = helper.make_node("Loop", ["times", "go", "x"], ["y"], body=body)
    return onnx_graph([loop], {"times": 2**62, "go": True}, {"x": TensorProto.FLOAT})


def onnx_bomb() -> bytes:
    """A file of a few bytes with an array of 24 GB, whose size it computes."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Mul", ["a", "a"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["large"]),
        helper.make_node("ReduceMean", ["large"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    return onnx_graph(nodes, {"a": [77460]}, {"x": TensorProto.FLOAT})


def safetensors_with(header: dict[str, Any], data: bytes, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


Case = tuple[str, str, Callable[[], bytes]]
"""Source, file name, and the function that makes the content."""


def _keep(_name: str, data: bytes) -> bytes:
    return data


def hostile_files(trace: Path, folder: Path) -> dict[str, Case]:
    """Name of a case -> source, file name, and the function that makes the content."""
    bad = Malicious(trace)
    weights = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    good = save(weights)
    of_head = {"head.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    bomb = b"\0" * 2**24
    return {
        "pickle as .pt": ("factory", "w.pt", lambda: pickle.dumps(bad)),
        "pickle as .pth": ("factory", "w.pth", lambda: pickle.dumps({"head.bias": bad})),
        "pickle as .bin": ("factory", "w.bin", lambda: pickle.dumps(bad, protocol=2)),
        "pickle as .safetensors": ("factory", "w.safetensors", lambda: pickle.dumps(bad)),
        "archive of torch with code": ("factory", "w.pth", lambda: torch_saved(bad)),
        "archive of torch with code beside tensors": ("factory", "w.bin", lambda: torch_saved(weights | {"more": bad})),
        "old format of torch with code": ("factory", "w.pt", lambda: torch_saved(bad, zipped=False)),
        "oldest format of torch with code": ("factory", "w.pt", lambda: tar_saved(pickle.dumps(bad))),
        "whole network": ("factory", "w.pt", lambda: torch_saved(Net())),
        "ZIP bomb": (
            "factory",
            "w.pth",
            lambda: rewritten(torch_saved(weights), _keep, ("archive/bomb", bomb), compressed=True),
        ),
        "path out of the archive": (
            "factory",
            "w.pth",
            lambda: rewritten(torch_saved(weights), _keep, ("../../evil.py", b"x")),
        ),
        "absolute path in the archive": (
            "factory",
            "w.pth",
            lambda: rewritten(torch_saved(weights), _keep, ("/tmp/evil", b"x")),
        ),
        "tensor larger than its file": (
            "factory",
            "w.pth",
            lambda: torch_saved({"head.weight": torch.zeros(1).expand(2**40)}),
        ),
        "truncated archive": ("factory", "w.pth", lambda: torch_saved(weights)[:-200]),
        "truncated safetensors": ("factory", "w.safetensors", lambda: good[:-40]),
        "safetensors with more data than declared": ("factory", "w.safetensors", lambda: good + bytes(64)),
        "safetensors with a header of 2^62 bytes": (
            "factory",
            "w.safetensors",
            lambda: safetensors_with(of_head, bytes(8), 2**62),
        ),
        "safetensors with offsets out of the file": (
            "factory",
            "w.safetensors",
            lambda: safetensors_with(
                {"head.bias": of_head["head.bias"] | {"data_offsets": [0, 2**40], "shape": [2**38]}}, bytes(8)
            ),
        ),
        "safetensors with overlapping tensors": (
            "factory",
            "w.safetensors",
            lambda: safetensors_with(of_head | {"b": of_head["head.bias"]}, bytes(8)),
        ),
        "script with code in its pickle": (
            "torchscript",
            "m.pt",
            lambda: rewritten(
                script(), lambda name, data: pickle.dumps(bad, protocol=2) if name.endswith("data.pkl") else data
            ),
        ),
        "script with a path out of the archive": (
            "torchscript",
            "m.pt",
            lambda: rewritten(script(), _keep, ("../evil", b"x")),
        ),
        "ZIP bomb as script": (
            "torchscript",
            "m.pt",
            lambda: rewritten(script(), _keep, ("m/bomb", bomb), compressed=True),
        ),
        "script with code whose name is computed": (
            "torchscript",
            "m.pt",
            lambda: rewritten(
                script(), lambda name, data: pickle.dumps(bad, protocol=4) if name.endswith("constants.pkl") else data
            ),
        ),
        "script with two members of one name": (
            "torchscript",
            "m.pt",
            lambda: rewritten(script(), _keep, *[("m/data.pkl", pickle.dumps(bad))] * 2),
        ),
        "pickle as script": ("torchscript", "m.pt", lambda: torch_saved(bad)),
        "program with pickled weights": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(
                program(),
                lambda name, data: (
                    data.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("json") else data
                ),
            ),
        ),
        "program with code in a size": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(
                program(),
                lambda name, data: (
                    data.replace(b"Symbol(", b"__import__('os').system('x') or Symbol(")
                    if name.endswith("model.json")
                    else data
                ),
            ),
        ),
        "program with code in the name of its input": (
            "torch_export",
            "m.pt2",
            lambda: in_description(b"images", f"images=__import__('os').mkdir('{trace}')"),
        ),
        "program with code in the name of a value": (
            "torch_export",
            "m.pt2",
            lambda: in_description(b'"flatten"', f"\"a=__import__('os').mkdir('{trace}');b\""),
        ),
        "program with code in the path of a layer": (
            "torch_export",
            "m.pt2",
            lambda: in_description(b"L__self__head,head,", f'L__self__head,head" + __import__("os").mkdir("{trace}"),'),
        ),
        "program with a keyword as name": ("torch_export", "m.pt2", lambda: in_description(b"images", "class")),
        "program with an example whose name is in upper case": (
            "torch_export",
            "m.pt2",
            lambda: with_example(torch_saved(bad), "model.PT"),
        ),
        "program with a pickled constant": (
            "torch_export",
            "m.pt2",
            lambda: with_constant("opaque_obj_0", pickle.dumps(bad)),
        ),
        "program with a custom constant": ("torch_export", "m.pt2", lambda: with_constant("custom_obj_0", script())),
        "program with a second description": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), _keep, ("archive/models/model-json", b"{}")),
        ),
        "program with weights of the former format": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), _keep, ("archive/data/weights/model.pt", torch_saved(bad))),
        ),
        "program whose inputs name a module": (
            "torch_export",
            "m.pt2",
            lambda: in_description(
                rb"\"context\": \"[]\"",
                r'"context": "{\"__enum__\": true, \"fqn\": \"evil:x\", \"name\": \"y\"}"',
            ),
        ),
        "program with a factory of a dictionary": (
            "torch_export",
            "m.pt2",
            lambda: in_description(b"builtins.dict", "collections.defaultdict"),
        ),
        "program with a size that is too large to compute": (
            "torch_export",
            "m.pt2",
            lambda: in_description(b"Symbol('s34', positive=True, integer=True)", "9**9**9**9"),
        ),
        "program that calls a method of Python": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), partial(_with_operator, "torch.ops.aten.__getattribute__")),
        ),
        "program that calls a function of Python": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), partial(_with_operator, "torch.serialization.os.system")),
        ),
        "program that writes a file": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), partial(_with_operator, "torch.ops.aten.from_file.default")),
        ),
        "program with a library": (
            "torch_export",
            "m.pt2",
            lambda: rewritten(program(), _keep, ("m/data/aotinductor/m/x.so", b"ELF")),
        ),
        "pickle as program": ("torch_export", "m.pt2", lambda: torch_saved(bad)),
        "pickle as ONNX": ("onnx", "m.onnx", lambda: pickle.dumps(bad)),
        "truncated ONNX": ("onnx", "m.onnx", lambda: onnx_model(None, folder)[:-60]),
        "ONNX with data above its folder": ("onnx", "m.onnx", lambda: onnx_model("../outside.bin", folder)),
        "ONNX with data at an absolute path": ("onnx", "m.onnx", lambda: onnx_model("/etc/hostname", folder)),
        "ONNX with longer data than their file": ("onnx", "m.onnx", lambda: onnx_model("data.bin", folder, 2**40)),
        "ONNX with missing data": ("onnx", "m.onnx", lambda: onnx_model("none.bin", folder)),
        "ONNX with a loop of 2^62 iterations": ("onnx", "m.onnx", onnx_loop),
        "ONNX with an array of 24 GB": ("onnx", "m.onnx", onnx_bomb),
        "ONNX with a link as data": ("onnx", "m.onnx", lambda: onnx_model("link.bin", folder)),
    }
