"""Hostile model files are refused with one message, and none of their code runs; harmless ones of each format load."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tasks.core.workspace import Workspace
from tasks.models.loading import import_classifier
from tasks.models.sources import load_program
from tasks.params import Classifier
from tests.faults.untrusted_files import (
    Malicious,
    Net,
    hostile_files,
    onnx_graph,
    onnx_model,
    program,
    script,
    torch_saved,
    with_example,
)

NAMES = list(hostile_files(Path(), Path()))


def load(folder: Path, source: str, name: str, content: bytes) -> torch.nn.Module:
    workspace = Workspace(folder)
    workspace.train_classifier.mkdir(parents=True)
    models = folder / "models"
    (models / name).write_bytes(content)
    (models / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = torch.nn.Linear(64, 2)\n"
        "    def forward(self, x):\n        return self.head(x.flatten(1))\n"
    )
    values: dict[str, Any] = {"source": source, "folder": "models"}
    values |= {"factory": "net:Net", "weights": name} if source == "factory" else {"file": name}
    values |= {"trust": True} if source == "torchscript" else {}
    classifier = Classifier.model_validate_json(json.dumps(values))
    return import_classifier(classifier, ("a", "b"), "b", (8, 8), 1, workspace)[0]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path, models: Path) -> None:
    trace = tmp_path / "trace"
    source, file, make = hostile_files(trace, models)[name]
    content = make()
    with pytest.raises(ValueError, match=r"^classifier\.(weights|file): .*refused"):
        load(tmp_path, source, file, content)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("inputs", "found"),
    [({"x": "UINT8"}, "x (uint8)"), ({"x": "FLOAT16"}, "x (float16)"), ({"x": "FLOAT", "k": "FLOAT"}, "x (float), k")],
)
def test_an_onnx_model_with_other_inputs_than_one_of_float32_is_one_message(
    inputs: dict[str, str], found: str, tmp_path: Path, models: Path
) -> None:
    from onnx import TensorProto, helper

    assert models.is_dir()
    nodes = [helper.make_node("Cast", [list(inputs)[-1]], ["y"], to=TensorProto.FLOAT)]
    content = onnx_graph(nodes, {}, {name: TensorProto.DataType.Value(kind) for name, kind in inputs.items()})
    message = (
        rf"^classifier\.file: the file is refused: it has the inputs {re.escape(found)}.*One input of the type float"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "onnx", "m.onnx", content)


def test_there_are_at_least_20_cases() -> None:
    assert len(NAMES) >= 20


@pytest.mark.parametrize("source", ["factory", "torch_export", "torchscript", "onnx", "onnx with data"])
def test_a_harmless_file_loads(source: str, tmp_path: Path, models: Path) -> None:
    content = {
        "factory": lambda: save({name: tensor.clone() for name, tensor in Net().state_dict().items()}),
        "torch_export": program,
        "torchscript": script,
        "onnx": lambda: onnx_model(None, models),
        "onnx with data": lambda: onnx_model("data.bin", models),
    }[source]()
    file = {"factory": "w.safetensors", "torch_export": "m.pt2", "torchscript": "m.pt"}.get(source, "m.onnx")
    model = load(tmp_path, source.partition(" ")[0], file, content)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 2)


def test_a_state_dict_of_torch_loads(tmp_path: Path, models: Path) -> None:
    assert models.is_dir()
    model = load(tmp_path, "factory", "w.pth", torch_saved(Net().state_dict()))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 2)


def test_the_example_of_a_program_is_not_read(tmp_path: Path, models: Path) -> None:
    trace = tmp_path / "trace"
    assert models.is_dir()
    model = load(tmp_path, "torch_export", "m.pt2", with_example(torch_saved(Malicious(trace))))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert not trace.exists()


def test_names_of_onnx_nodes_do_not_run(tmp_path: Path, models: Path) -> None:
    trace = tmp_path / "trace"
    code = f"""a" if exec("import os;os\\x2emakedirs('{trace}',exist_ok=True)") else "a"""
    model = load(tmp_path, "onnx", "m.onnx", onnx_model(None, models, name=code))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert not trace.exists()


def test_programs_with_sizes_of_two_factors_and_several_outputs_load(tmp_path: Path) -> None:
    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
            self.heads = torch.nn.ModuleDict({"a-b": torch.nn.Linear(4, 2)})

        def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:
            n = input.shape[0]
            tokens = input.reshape(n * 16, 4).reshape(n, 16, 4)
            tokens = self.attention(tokens, tokens, tokens)[0]
            tokens = torch.einsum("nij,nij->nij", tokens, tokens)
            return {"logits": self.heads["a-b"](tokens.mean(1)), "tokens": tokens}

    network, images = Patches().eval(), torch.rand(3, 1, 8, 8)
    dynamic = {"input": {0: torch.export.Dim("n", min=1)}}
    torch.export.save(
        torch.export.export(network, (images,), dynamic_shapes=dynamic),
        path := tmp_path / "m.pt2",
        extra_files={"note.txt": "any text"},
    )
    torch.testing.assert_close(load_program(path)(images), network(images))
