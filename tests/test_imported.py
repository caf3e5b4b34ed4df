"""Imported classifiers of every source give the logits of the original, and are loaded again from the copied files."""

import json
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.core.digests import digest_of_model
from tasks.core.workspace import Workspace
from tasks.models import queried
from tasks.models.features import LogitsAndFeatures, last_feature_map_layer
from tasks.models.files import save_model
from tasks.models.imported import ImportedClassifier
from tasks.models.loading import check_trainable, import_classifier, load_classifier
from tasks.params import Classifier, parse_params
from tasks.tracking import experiment_id
from tasks.tracking.imported import download_program
from tasks.tracking.store import Store
from tests.conftest import ROOT, with_overrides
from tests.faults.untrusted_files import Malicious

SIDE, CLASSES = 32, ("none", "left", "right")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MODULE = '''
import torch
from layers import Block

class Net(torch.nn.Module):
    def __init__(self, n_classes, width=6):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 3, stride=2)
        self.block = Block(width)
        self.head = torch.nn.Linear(width, n_classes)

    def forward(self, x):
        return self.head(self.block(self.stem(x)).mean(dim=(2, 3)))

def build(n_classes, width=6):
    return Net(n_classes, width)

class Scores:
    """Fulfils MAITE's protocol."""
    metadata = {"id": "toy"}

    def __init__(self, network):
        self.network = network.eval()

    def __call__(self, batch):
        with torch.no_grad():
            logits = self.network(torch.stack([torch.as_tensor(image) for image in batch]))
        return [row.softmax(dim=0).numpy() for row in logits]

def scores(n_classes, weights):
    from safetensors.torch import load_file
    network = build(n_classes)
    network.load_state_dict(load_file(weights))
    return Scores(network)

def wrong(n_classes):
    return 3
'''
LAYERS = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(width, width, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv(x)))
"""


class Original(nn.Module):
    """The network of MODULE, built without it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2)
        self.block = nn.Module()
        self.block.conv = nn.Conv2d(width, width, 3, padding=1)
        self.block.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block.bn(self.block.conv(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@pytest.fixture
def original() -> nn.Module:
    torch.manual_seed(1)
    network = Original().train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(8, 3, SIDE, SIDE))
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.train_classifier.mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my_net.py").write_text(MODULE)
    (tmp_path / "models" / "layers.py").write_text(LAYERS)
    return workspace


def declared(source: str, **values: Any) -> Classifier:
    values.setdefault("input", {"channels": 3, "mean": MEAN, "std": STD})
    return Classifier.model_validate_json(json.dumps({"source": source, "folder": "models"} | values))


def imported(workspace: Workspace, classifier: Classifier, classes: tuple[str, ...] = CLASSES) -> nn.Module:
    """Import, save and load again, as the step and the steps behind it do."""
    model, arguments = import_classifier(classifier, classes, classes[-1], (SIDE, SIDE), 1, workspace)
    save_model(workspace.classifier, model, **arguments)
    loaded = load_classifier(workspace, workspace.classifier)
    assert digest_of_model(loaded) == digest_of_model(model)
    return loaded


def expected(original: nn.Module, images: Tensor) -> Tensor:
    """Logits of the original for grey images, by torchvision's own transform."""
    from torchvision.transforms import v2

    with torch.inference_mode():
        logits: Tensor = original(v2.Normalize(MEAN, STD)(images.repeat(1, 3, 1, 1)))
    return logits


def close(model: nn.Module, images: Tensor, logits: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_factory_of_a_users_file_with_weights(
    workspace: Workspace, original: nn.Module, images: Tensor, suffix: str
) -> None:
    path = workspace.root / "models" / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(original.state_dict(), path)
    else:
        content = {f"module.{name}": value for name, value in original.state_dict().items()}
        torch.save(content if suffix == ".pt" else {"state_dict": content, "epoch": 3}, path)
    classifier = declared("factory", factory="my_net:build", arguments={"n_classes": 3}, weights=path.name)
    model = imported(workspace, classifier)
    close(model, images, expected(original, images))
    # the source may go: later steps read the copies
    (workspace.root / "models" / "my_net.py").unlink()
    close(load_classifier(workspace, workspace.classifier), images, expected(original, images))
    assert not list(workspace.train_classifier.rglob("__pycache__"))


def test_a_factory_of_torchvision_with_another_size(workspace: Workspace, images: Tensor) -> None:
    import torchvision
    from torchvision.transforms import v2

    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    save_file(network.state_dict(), workspace.root / "models" / "resnet18.safetensors")
    size = {"channels": 3, "size": [40, 48], "mean": MEAN, "std": STD}
    named = {"factory": "torchvision.models:resnet18", "arguments": {"num_classes": 3}}
    model = imported(workspace, declared("factory", weights="resnet18.safetensors", input=size, **named))
    transform = v2.Compose([v2.Resize((40, 48), antialias=True), v2.Normalize(MEAN, STD)])
    with torch.inference_mode():
        close(model, images, network(transform(images.repeat(1, 3, 1, 1))))
        colour = torch.rand(2, 3, SIDE, SIDE)
        close(model, colour, network(transform(colour)))


@pytest.mark.parametrize("static", [False, True])
def test_a_program_of_torch_export(workspace: Workspace, original: nn.Module, images: Tensor, static: bool) -> None:
    shapes = None if static else ({0: torch.export.Dim("n", min=1)},)
    program = torch.export.export(original, (torch.zeros(1 if static else 2, 3, SIDE, SIDE),), dynamic_shapes=shapes)
    torch.export.save(program, workspace.root / "models" / "net.pt2")
    model = imported(workspace, declared("torch_export", file="net.pt2"))
    close(model, images, expected(original, images))


def test_a_torchscript_archive_needs_trust(workspace: Workspace, original: nn.Module, images: Tensor) -> None:
    torch.jit.script(original).save(str(workspace.root / "models" / "net.pt"))
    with pytest.raises(ValueError, match="trust must be true"):
        declared("torchscript", file="net.pt")
    model = imported(workspace, declared("torchscript", file="net.pt", trust=True))
    close(model, images, expected(original, images))


class TestMlflow:
    @pytest.fixture
    def logged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        """A function that registers a network in a new registry, and returns the address of its version."""
        import mlflow

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        Store()

        def log(network: nn.Module, serialization: str) -> str:
            example = np.zeros((2, 3, SIDE, SIDE), np.float32)
            options = {"input_example": example, "serialization_format": serialization, "pip_requirements": ["torch"]}
            model = tmp_path / f"model_{serialization}"
            mlflow.pytorch.save_model(network, model, **options)
            client = Store().client
            run = client.create_run(experiment_id())
            client.log_artifacts(run.info.run_id, str(model), "model")
            return f"runs:/{run.info.run_id}/model"

        return log

    def test_a_program_is_downloaded_and_imported(
        self, workspace: Workspace, original: nn.Module, images: Tensor, logged: Callable[..., str], tmp_path: Path
    ) -> None:
        uri = logged(original, "pt2")
        (folder := tmp_path / "downloaded").mkdir()
        program = download_program(uri, folder)
        classifier = declared("mlflow", uri=uri)
        size = (SIDE, SIDE)
        model, arguments = import_classifier(classifier, CLASSES, CLASSES[-1], size, 1, workspace, program)
        save_model(workspace.classifier, model, **arguments)
        close(load_classifier(workspace, workspace.classifier), images, expected(original, images))

    def test_a_pickle_is_refused(self, original: nn.Module, logged: Callable[..., str], tmp_path: Path) -> None:
        uri = logged(original, "pickle")
        (folder := tmp_path / "downloaded").mkdir()
        with pytest.raises(ValueError, match="a pickle can run code"):
            download_program(uri, folder)

    def test_files_of_other_flavours_are_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        client = Store().client
        run_id = client.create_run(experiment_id()).info.run_id
        for number, names in enumerate(
            (
                ["python_model.pkl"],  # pyfunc
                ["model.pkl"],  # sklearn
                ["data/model.pth"],
                ["pytorch_model.bin"],  # transformers
                ["data/model.pt2", "python_model.pkl"],
                ["data/model.pt2", "data/pickle_module_info.pt"],
                ["data/model.pt2", "other/model.pt2"],
                ["model.joblib"],
            )
        ):
            for name in names:
                (path := tmp_path / str(number) / name).parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
            client.log_artifacts(run_id, str(tmp_path / str(number)), str(number))
            (folder := tmp_path / "downloaded" / str(number)).mkdir(parents=True)
            with pytest.raises(ValueError, match="a pickle can run code"):
                download_program(f"runs:/{run_id}/{number}", folder)
        assert not (tmp_path / "trace").exists()

    def test_a_model_that_does_not_exist_is_one_message(self, logged: Callable[..., str], tmp_path: Path) -> None:
        assert logged
        with pytest.raises(ValueError, match=r"^classifier\.uri: models:/none/1 cannot be downloaded"):
            download_program("models:/none/1", tmp_path)


def onnx_file(path: Path, network: nn.Module) -> None:
    batch = {"images": {0: "n"}}
    torch.onnx.export(
        network, (torch.zeros(1, 3, SIDE, SIDE),), path, dynamo=False, input_names=["images"], dynamic_axes=batch
    )


@pytest.mark.parametrize("converts", [True, False])
def test_an_onnx_model_has_gradients_if_it_converts_and_is_queried_otherwise(
    workspace: Workspace, original: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, converts: bool
) -> None:
    import onnx2torch

    def fail(_model: Any) -> None:
        raise NotImplementedError

    onnx_file(workspace.root / "models" / "net.onnx", original)
    if not converts:
        monkeypatch.setattr(onnx2torch, "convert", fail)
    model = imported(workspace, declared("onnx", file="net.onnx"))
    assert isinstance(model, ImportedClassifier)
    assert model.has_gradients == converts
    close(model, images, expected(original, images))
    with nullcontext() if converts else pytest.raises(ValueError, match="can only be queried"):
        check_trainable(model, "trades", "trades")


@pytest.mark.parametrize("final", ["Softmax", "Sigmoid"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
def test_a_wrong_conversion_is_found_where_the_output_of_an_onnx_model_is_saturated(
    workspace: Workspace, images: Tensor, coordinates: str, final: str
) -> None:
    """onnx2torch resizes asymmetric coordinates otherwise; only images in [0, 255] that are no noise show it."""
    import onnx
    import onnxruntime

    rng, halves = np.random.default_rng(0), [1, 1, 0.5, 0.5]
    weights = 3 * rng.normal(size=(SIDE * SIDE // 4, 3))
    # both classes differ, but class 0 has probability 1 for black images
    values = {"scale": 255, "halves": halves, "w": weights, "b": [200, -200, -200]}
    make, number = onnx.helper.make_node, onnx.TensorProto.FLOAT
    nodes = [make("Div", ["x", "scale"], ["d"]), make("Flatten", ["r"], ["f"]), make("Gemm", ["f", "w", "b"], ["g"])]
    resize = {"mode": "linear", "coordinate_transformation_mode": coordinates}
    nodes.insert(1, make("Resize", ["d", "", "halves"], ["r"], **resize))
    nodes.append(make(final, ["g"], ["y"]))
    ends = [
        onnx.helper.make_tensor_value_info(name, number, shape)
        for name, shape in (("x", ("n", 1, SIDE, SIDE)), ("y", ("n", 3)))
    ]
    tensors = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, workspace.root / "models" / "net.onnx")
    given = {"input": {"value_range": [0, 255]}, "output": {"kind": "probabilities"}}
    loaded = imported(workspace, declared("onnx", file="net.onnx", **given))
    assert isinstance(loaded, ImportedClassifier)
    assert loaded.has_gradients == (coordinates == "half_pixel")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        scores = session.run(None, {"x": 255 * images.numpy()})[0]
        np.testing.assert_allclose(loaded.raw(images).numpy(), scores, atol=1e-4)


def test_a_model_of_maites_protocol(workspace: Workspace, original: nn.Module, images: Tensor) -> None:
    save_file(original.state_dict(), workspace.root / "models" / "weights.safetensors")
    named = {"factory": "my_net:scores", "arguments": {"n_classes": 3}, "weights": "weights.safetensors"}
    model = imported(workspace, declared("maite", output={"kind": "probabilities"}, **named))
    assert isinstance(model, ImportedClassifier)
    assert not model.has_gradients
    with torch.inference_mode():
        torch.testing.assert_close(model(images).softmax(dim=1), expected(original, images).softmax(dim=1))


RAW_ANSWERS = {
    "/no_status": b"nothing\r\n\r\n",
    "/headers": b"HTTP/1.0 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "/nested": b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
    "/redirect": b"HTTP/1.0 302 Found\r\nLocation: /scores\r\n\r\n",
    "/number": b'HTTP/1.0 200 OK\r\n\r\n{"predictions": 3}',
}
ANSWERS = {"/flat": 0.5, "/out_of_range": 3, "/negative": -1, "/one_hot": [0, 1, 0], "/fraction": 1.7}
"""Path -> answer for each image."""


@pytest.fixture
def server(original: nn.Module) -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with torch.inference_mode():
                logits = original(torch.tensor(body["instances"]))
            answer = logits.argmax(dim=1) if self.path == "/labels" else logits
            if self.path in RAW_ANSWERS:
                self.wfile.write(RAW_ANSWERS[self.path])
                return
            if self.path == "/slow":
                for byte in b"HTTP/1.0 200 OK\r\nlong: header":
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
                return
            content = b"no" if self.path == "/broken" else json.dumps({"predictions": answer.tolist()}).encode()
            if self.path in ANSWERS:
                content = json.dumps({"predictions": [ANSWERS[self.path]] * len(answer)}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_server_is_queried_for_scores_or_labels(
    workspace: Workspace, original: nn.Module, images: Tensor, server: HTTPServer
) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    model = imported(workspace, declared("http", address=f"{address}/scores"))
    close(model, images, expected(original, images))
    again = Workspace(workspace.root / "labels")
    again.train_classifier.mkdir(parents=True)
    labels = imported(again, declared("http", address=f"{address}/labels", output={"kind": "labels"}))
    with torch.inference_mode():
        assert labels(images).argmax(dim=1).tolist() == expected(original, images).argmax(dim=1).tolist()
    third = Workspace(workspace.root / "broken")
    third.train_classifier.mkdir(parents=True)
    with pytest.raises(ValueError, match="not readable"):
        imported(third, declared("http", address=f"{address}/broken"))


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("no_status", "logits", "does not answer: nothing"),
        ("headers", "logits", "does not answer: got more than 100 headers"),
        ("nested", "logits", "not readable .RecursionError"),
        ("redirect", "logits", "redirects to another address"),
        ("number", "logits", "One finite row each"),
        ("slow", "logits", "is not complete after 0.5 s"),
        ("flat", "logits", "1 outputs for the 3 classes"),
        ("out_of_range", "labels", "from 0 to 2"),
        ("negative", "labels", "from 0 to 2"),
        ("one_hot", "labels", "One number of a class"),
        ("fraction", "labels", "One number of a class"),
    ],
)
def test_a_wrong_answer_of_a_server_is_one_message(
    workspace: Workspace, server: HTTPServer, monkeypatch: pytest.MonkeyPatch, path: str, kind: str, message: str
) -> None:
    monkeypatch.setattr(queried, "MAX_ANSWER_SECONDS", 0.5 if path == "slow" else 60)
    address = f"http://127.0.0.1:{server.server_port}/{path}"
    with pytest.raises(ValueError, match=message) as caught:
        imported(workspace, declared("http", address=address, output={"kind": kind}))
    assert "Correct channels" not in str(caught.value)


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_a_model_that_the_server_has_changed_since_the_import_is_refused(
    workspace: Workspace, original: nn.Module, images: Tensor, server: HTTPServer, kind: str
) -> None:
    address = f"http://127.0.0.1:{server.server_port}/{'labels' if kind == 'labels' else ''}"
    before = digest_of_model(imported(workspace, declared("http", address=address, output={"kind": kind})))
    assert isinstance(original.head, nn.Linear)
    with torch.no_grad():
        original.head.bias += torch.tensor([0.0, 0.1, 100 if kind == "labels" else 0.2])
    with pytest.raises(ValueError, match=rf"^classifier\.address: {address} gives other outputs .*has changed.*import"):
        load_classifier(workspace, workspace.classifier)
    shutil.rmtree(workspace.classifier_files)
    assert digest_of_model(imported(workspace, declared("http", address=address, output={"kind": kind}))) != before


def test_a_served_model_with_random_outputs_is_loaded_with_a_warning(
    workspace: Workspace, original: nn.Module, images: Tensor, server: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(original.head, nn.Linear)
    original.head.register_forward_hook(lambda _module, _inputs, output: output + torch.randn_like(output))
    model = imported(workspace, declared("http", address=f"http://127.0.0.1:{server.server_port}"))
    assert "outputs are random" in caplog.text
    assert model(images).shape == (5, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch_size", [0, 1])
def test_a_network_that_normalises_its_input_in_place_has_gradients(
    workspace: Workspace, channels: int, batch_size: int
) -> None:
    net = """import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return x.sub_(0.5).mul_(2).mean(dim=1).flatten(1)[:, :3]
"""
    (workspace.root / "models" / "in_place.py").write_text(net)
    model = imported(workspace, declared("factory", factory="in_place:Net", input={"channels": channels}))
    assert isinstance(model, ImportedClassifier)
    model.batch_size = batch_size
    images = torch.full((2, 1, SIDE, SIDE), 0.75, requires_grad=True)
    logits = model(images)
    assert logits.unique().tolist() == [0.5]
    logits.sum().backward()  # type: ignore[no-untyped-call]  # torch's annotation
    assert images.detach().unique().tolist() == [0.75]
    assert images.grad is not None
    assert images.grad.unique().tolist() == [0, 2]


def test_the_order_of_the_classes_is_that_of_the_data(
    workspace: Workspace, original: nn.Module, images: Tensor
) -> None:
    save_file(original.state_dict(), workspace.root / "models" / "weights.safetensors")
    named = {"factory": "my_net:build", "arguments": {"n_classes": 3}, "weights": "weights.safetensors"}
    classifier = declared("factory", output={"classes": ["right", "none", "left"]}, **named)
    close(imported(workspace, classifier), images, expected(original, images)[:, [1, 2, 0]])


def test_one_finding_of_a_multi_label_classifier(workspace: Workspace, original: nn.Module, images: Tensor) -> None:
    save_file(original.state_dict(), workspace.root / "models" / "weights.safetensors")
    named = {"factory": "my_net:build", "arguments": {"n_classes": 3}, "weights": "weights.safetensors"}
    with pytest.raises(ValueError, match=r"classifier\.output\.column: the network has 3 outputs"):
        imported(workspace, declared("factory", output={"kind": "sigmoid_logit"}, **named), ("no", "yes"))
    shutil.rmtree(workspace.classifier_files)
    output = {"kind": "sigmoid_logit", "column": 2}
    model = imported(workspace, declared("factory", output=output, **named), ("no", "yes"))
    logit = expected(original, images)[:, 2]
    close(model, images, torch.stack([torch.zeros_like(logit), logit], dim=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factory": "my_net:missing"}, "cannot be imported"),
        ({"factory": "no_such_module:build"}, "cannot be imported"),
        ({"factory": "my_net:wrong"}, "returns int"),
        ({"arguments": {"classes": 3}}, "failed: TypeError"),
        ({"arguments": {"n_classes": 4}}, "4 outputs for the 3 classes"),
        ({"weights": "other.safetensors"}, "not found"),
        ({"weights": "../x.safetensors"}, "leads out"),
        ({"input": {"channels": 1}}, "declared shape"),
        ({"output": {"classes": ["a", "b", "c"]}}, "must be the names"),
    ],
)
def test_a_wrong_declaration_is_one_message(workspace: Workspace, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) if message != "not found" else pytest.raises(FileNotFoundError):
        imported(workspace, declared("factory", **{"factory": "my_net:build", "arguments": {"n_classes": 3}} | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "factory"}, "factory is missing"),
        ({"source": "onnx"}, "file is missing"),
        ({"source": "http", "address": "file:///etc/passwd"}, "address"),
        ({"source": "train", "file": "net.pt2"}, "file has no meaning"),
        ({"source": "factory", "factory": "os.system"}, "factory"),
        ({"source": "onnx", "file": "a.onnx", "input": {"channels": 3, "mean": [0.5, 0.5]}}, "1 number, or one for"),
        ({"source": "onnx", "file": "a.onnx", "output": {"kind": "labels"}}, "without gradients"),
        ({"source": "onnx", "file": "a.onnx", "input": {"value_range": [1, 0]}}, "must rise"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declared(**values)


def test_the_examples_of_the_documentation_are_valid_parameters() -> None:
    for page in ("own-classifier.md", "own-defence.md"):
        text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
        blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
        assert blocks
        for block in blocks:
            values, sections = with_overrides({}), YAML(typ="safe").load(block)
            # a file for `--model` is the section `classifier` without its folder
            for section, content in (
                {"classifier": {"folder": "models"} | sections} if "source" in sections else sections
            ).items():
                # the classifier is replaced as a whole
                values[section] = content if section == "classifier" else values[section] | content
            parse_params(values)


class TestLayers:
    def test_layers_of_a_program_are_found(self, workspace: Workspace, original: nn.Module, images: Tensor) -> None:
        dynamic = ({0: torch.export.Dim("n", min=1)},)
        program = torch.export.export(original, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=dynamic)
        torch.export.save(program, workspace.root / "models" / "net.pt2")
        model = imported(workspace, declared("torch_export", file="net.pt2"))
        logits, features = LogitsAndFeatures(model)(images)
        assert features.shape == (5, 6)
        torch.testing.assert_close(logits, model(images))
        assert last_feature_map_layer(model, (1, SIDE, SIDE)) is not model

    def test_layers_can_be_named(self, workspace: Workspace) -> None:
        named = {"factory": "my_net:build", "arguments": {"n_classes": 3}, "feature_map_layer": "stem"}
        model = imported(workspace, declared("factory", **named))
        assert last_feature_map_layer(model, (1, SIDE, SIDE)) is model.get_submodule("network.stem")
        assert isinstance(model, ImportedClassifier)
        model.feature_map_layer = "nothing"
        with pytest.raises(ValueError, match="no layer 'nothing'"):
            last_feature_map_layer(model, (1, SIDE, SIDE))

    def test_a_script_gives_logits_as_features_and_a_map_of_its_images(
        self, workspace: Workspace, original: nn.Module, images: Tensor
    ) -> None:
        torch.jit.script(original).save(str(workspace.root / "models" / "net.pt"))
        model = imported(workspace, declared("torchscript", file="net.pt", trust=True))
        logits, features = LogitsAndFeatures(model)(images)
        torch.testing.assert_close(logits, features)
        assert last_feature_map_layer(model, (1, SIDE, SIDE)) is model.get_submodule("images")


def test_a_change_of_the_users_file_changes_the_digest(workspace: Workspace, images: Tensor) -> None:
    named = {"factory": "my_net:build", "arguments": {"n_classes": 3}}
    first = digest_of_model(imported(workspace, declared("factory", **named)))
    path = workspace.classifier_files / "layers.py"
    path.write_text(LAYERS.replace("relu", "tanh"))
    changed = load_classifier(workspace, workspace.classifier)
    assert digest_of_model(changed) != first
    assert np.isfinite(changed(images).numpy()).all()
