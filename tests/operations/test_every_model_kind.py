"""A trained classifier of every kind goes from at most twelve lines of YAML to a report, by one command."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.core.workspace import Workspace
from tasks.models.loading import load_classifier
from tests.conftest import ROOT
from tests.small_workspace import CLASSES, SIDE, draw_images
from tests.test_own_audit import SMALL_EFFORT, make_folder

pytestmark = pytest.mark.operations

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.2, 0.3]
MODELS = {
    "own_file": "source: factory\nfactory: ours:build\nweights: net.safetensors\ninput: {channels: 1}",
    "torch_export": "source: torch_export\nfile: net.pt2\ninput: {channels: 1}",
    "torchscript": "source: torchscript\nfile: net.pt\ntrust: true\ninput: {channels: 1}",
    "onnx": "source: onnx\nfile: net.onnx\ninput: {channels: 1}",
    "mlflow": "source: mlflow\nuri: models:/toy/1\ninput: {channels: 1}",
    "maite": "source: maite\nfactory: ours:scores\nweights: net.safetensors\ninput: {channels: 1}",
    "http": "source: http\naddress: ADDRESS\ninput: {channels: 1}",
    "torchvision": (
        "source: factory\nfactory: torchvision.models:resnet18\narguments: {num_classes: 3}\n"
        f"weights: net.safetensors\ninput: {{channels: 3, mean: {MEAN}, std: {STD}}}"
    ),
    "timm": (
        "source: factory\nfactory: timm:create_model\narguments: {model_name: resnet18, num_classes: 3, in_chans: 1}\n"
        "weights: net.safetensors\ninput: {channels: 1, mean: [0.449], std: [0.226]}"
    ),
    "torchxrayvision": (
        "source: factory\nfactory: torchxrayvision.models:DenseNet\narguments: {num_classes: 3, in_channels: 1}\n"
        "weights: net.safetensors\ninput: {channels: 1, value_range: [-1024, 1024]}"
    ),
    "monai": (
        "source: factory\nfactory: monai.networks.nets:DenseNet121\n"
        "arguments: {spatial_dims: 2, in_channels: 1, out_channels: 3}\nweights: net.safetensors\ninput: {channels: 1}"
    ),
}
OUTPUT = f"\noutput: {{kind: logits, classes: {CLASSES}}}\nreference_outputs: reference.csv\n"
QUERIED = ("maite", "http")
"""Kinds without gradients."""
BATCH = {0: torch.export.Dim("n", min=1)}


def original(kind: str, small_workspace: Path) -> tuple[nn.Module, Tensor]:
    """The user's network, and the images as it takes them."""
    torch.manual_seed(0)
    images = torch.from_numpy(draw_images()[0]).float() / 255
    match kind:
        case "torchvision":
            from torchvision.models import resnet18
            from torchvision.transforms import v2

            return resnet18(num_classes=3).eval(), v2.Normalize(MEAN, STD)(images.repeat(1, 3, 1, 1))
        case "timm":
            network = pytest.importorskip("timm", reason="timm is not installed").create_model(
                "resnet18", num_classes=3, in_chans=1
            )
            return network.eval(), (images - 0.449) / 0.226
        case "torchxrayvision":
            models = pytest.importorskip("torchxrayvision.models", reason="torchxrayvision is not installed")
            return models.DenseNet(num_classes=3, in_channels=1).eval(), 2048 * images - 1024
        case "monai":
            nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
            return nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=3).eval(), images
    return load_classifier(Workspace(small_workspace), Workspace(small_workspace).classifier), images


def save_original(kind: str, network: nn.Module, folder: Path) -> None:
    """Save the network as its kind needs it."""
    example = torch.zeros(2, 1, SIDE, SIDE)
    match kind:
        case "torch_export":
            program = torch.export.export(network, (example,), dynamic_shapes=(BATCH,))
            torch.export.save(program, folder / "models" / "net.pt2")
        case "torchscript":
            torch.jit.script(network).save(str(folder / "models" / "net.pt"))
        case "onnx":
            torch.onnx.export(
                network,
                (example,),
                folder / "models" / "net.onnx",
                dynamo=False,
                input_names=["images"],
                dynamic_axes={"images": {0: "n"}},
            )
        case "mlflow":
            mlflow.pytorch.save_model(
                network,
                folder / "toy",
                input_example=example.numpy(),
                serialization_format="pt2",
                pip_requirements=["torch"],
            )
            client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
            run = client.create_run("0")
            client.log_artifacts(run.info.run_id, str(folder / "toy"), "model")
            client.create_registered_model("toy")
            client.create_model_version("toy", f"{run.info.artifact_uri}/model", run.info.run_id)
        case _:
            save_file(network.state_dict(), folder / "models" / "net.safetensors")


@pytest.fixture
def address(small_workspace: Path) -> Iterator[str]:
    """Address of a server of the small network."""
    network, _ = original("http", small_workspace)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with torch.inference_mode():
                logits = network(torch.tensor(body["instances"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"predictions": logits.tolist()}).encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/scores"
    served.shutdown()


@pytest.mark.parametrize("kind", MODELS)
def test_a_few_lines_of_yaml_give_a_report(
    kind: str, small_workspace: Path, empty_store: Path, server: str, address: str, tmp_path: Path
) -> None:
    network, images = original(kind, small_workspace)
    make_folder(tmp_path, small_workspace)
    shutil.copy(empty_store, tmp_path)
    shutil.copy(ROOT / "environment.yaml", tmp_path)
    save_original(kind, network, tmp_path)
    text = MODELS[kind].replace("ADDRESS", address) + OUTPUT
    assert len(text.splitlines()) <= 12
    (tmp_path / "models" / f"{kind}.yaml").write_text(text)
    with torch.inference_mode():
        logits = network(images).numpy().astype(np.float64)
    with (tmp_path / "models" / "reference.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *CLASSES])
        rows.writerows([path, *values] for path, values in zip(draw_images()[1]["path"][:20], logits, strict=False))

    command = [sys.executable, "-c", SMALL_EFFORT, "--model", f"models/{kind}.yaml", "--images", "pictures"]
    command += ["--positive-class", "left"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PREFECT_API_URL": server,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

    (report,) = tmp_path.glob("audits/*/data/report/report.html")
    workspace = Workspace(report.parents[2])
    status = {check["key"]: check["status"] for check in json.loads(workspace.checks.read_text())}
    assert status["import_parity"] == "PASS"
    assert ("white_box_access" in status) == (kind in QUERIED)
    assert ("can only be queried" in report.read_text()) == (kind in QUERIED)
    clean = pd.read_parquet(workspace.records("undefended")).query("attack == 'clean'")
    assert len(clean) > 0
