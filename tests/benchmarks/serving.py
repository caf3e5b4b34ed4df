"""Latency and throughput of ``mlflow models serve``, and of direct calls of the same model.

The model is the denoising autoencoder before the CNN at 224 x 224 with untrained weights (time does not depend on
them), registered in a temporary store and served on loopback by one worker. Images are PNG files of 400 x 300 grey
noise, which compress worse than scans. Measured are:

- ``network``: the target and its detector on a prepared image;
- ``predictor``: the same from the bytes of a file: decoding, checks, resizing to a square, the prediction as an object;
- ``served``: a request with one image over a persistent connection, until the response is parsed;
- throughput of several clients, each a thread that sends the next request after a response, and of one client that
  sends several images in each request.

    python -m tests.benchmarks.serving [--json PATH] [--requests N] [--threads N]
"""

import argparse
import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import requests
import torch
from PIL import Image

from tasks.core.workspace import Workspace
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import save_model
from tasks.params import Params, parse_params
from tasks.serving import registry
from tasks.serving.bundle import load_bundle, write_bundle
from tasks.serving.inference import predict
from tasks.serving.predictor import Predictor
from tests.benchmarks.machine import describe, machine, write_json
from tests.conftest import VALUES, with_overrides

SIDE, TARGET, NAME = 224, "autoencoder", "measured"
CLIENTS = (1, 2, 4, 8)
IMAGES = (1, 8, 32)


def make_workspace(threads: int) -> Params:
    """Write untrained networks and a few images of noise to the current folder, as the steps do."""
    params = parse_params(with_overrides({"compute.threads": threads, "compute.device": "cpu"}))
    folders = (Workspace().validate, Workspace().prepare, Workspace().train_classifier, Workspace().train_autoencoder)
    for folder in (*folders, Workspace().step_folder("train_defence", TARGET)):
        folder.mkdir(parents=True)
    n = 16
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "label": np.arange(n) % 2, "group": np.arange(n)})
    table["class"] = [params.acquire.classes[label] for label in table["label"]]
    table.assign(width=400, height=300).to_parquet(Workspace().manifest)
    table["split"] = ["train", "validation"] * (n // 2)
    table.to_parquet(Workspace().split)
    np.save(Workspace().pixels, np.random.default_rng(0).integers(0, 256, (n, 1, SIDE, SIDE), dtype=np.uint8))
    info = {"name": "noise", "classes": params.acquire.classes, "positive_class": params.acquire.positive_class}
    Workspace().dataset_info.write_text(
        json.dumps(info | {"value_range": [0.0, 1.0], "is_phantom": True}), encoding="utf-8"
    )
    build: dict[str, Any] = {"architecture": "cnn", "n_classes": 2, "mean": 0.5, "std": 0.3}
    save_model(Workspace().classifier, build_classifier(**build), **build)
    for path in (Workspace().autoencoder, Workspace().purifier(TARGET)):
        save_model(path, build_autoencoder("plain"), architecture="plain")
    return params


def image_file(seed: int) -> bytes:
    """Return a PNG file of grey noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), format="PNG")
    return file.getvalue()


def request_of(files: list[bytes]) -> dict[str, Any]:
    """Return the JSON body of a request for these files."""
    return {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(file).decode()] for file in files]}}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, float]]:
    """Serve the model; its address, and the seconds until the first response."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    began = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=10).raise_for_status()
                break
            time.sleep(0.2)
        assert process.poll() is None, (folder / "log.txt").read_text()
        yield f"http://127.0.0.1:{port}/invocations", time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(60)


def milliseconds(calls: dict[str, Callable[[], Any]], n: int) -> dict[str, dict[str, float]]:
    """Percentiles of n calls each, which take turns, after five warm-up calls."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(n + 5):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            spent[name] += [1000 * (time.perf_counter() - began)] if i >= 5 else []
    return {
        name: {f"p{percentile}": float(np.percentile(of_call, percentile)) for percentile in (50, 95)}
        for name, of_call in spent.items()
    }


def send(session: requests.Session, address: str, body: dict[str, Any]) -> None:
    """Send a request and parse the response."""
    response = session.post(address, json=body, timeout=300)
    response.raise_for_status()
    assert len(response.json()["predictions"]) == len(body["dataframe_split"]["data"])


def images_a_second(address: str, n_clients: int, n_images: int, n_requests: int) -> float:
    """Throughput of several clients that send ``n_images`` in each of ``n_requests`` requests in total."""
    body = request_of([image_file(seed) for seed in range(n_images)])

    def client(_: int) -> None:
        with requests.Session() as session:
            for _ in range(n_requests // n_clients):
                send(session, address, body)

    with ThreadPoolExecutor(n_clients) as pool:
        began = time.perf_counter()
        list(pool.map(client, range(n_clients)))
        return n_clients * (n_requests // n_clients) * n_images / (time.perf_counter() - began)


def main() -> None:
    """Measure, print, and write JSON if a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--threads", type=int, default=VALUES["compute"]["threads"], help="of torch (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    facts = machine("torch", "mlflow", "pillow", "uvicorn") | {"threads": arguments.threads}
    print(describe(facts), flush=True)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        write_bundle(Workspace(), folder / "bundle", make_workspace(arguments.threads), TARGET, "# measured\n")
        registry.move_champion(registry.register_bundle(folder / "bundle", NAME, "measured"), "to be measured")
        predictor, network, file = Predictor.load(folder / "bundle"), load_bundle(folder / "bundle"), image_file(0)
        prepared = np.random.default_rng(0).random((1, 1, SIDE, SIDE), dtype=np.float32)
        torch.set_num_threads(predictor.bundle.threads)
        with served(folder) as (address, start_up), requests.Session() as session:
            body = request_of([file])
            calls: dict[str, Callable[[], Any]] = {
                "network": lambda: predict(network, prepared),
                "predictor": lambda: predictor.predict_files([file]),
                "served": lambda: send(session, address, body),
            }
            latency = milliseconds(calls, arguments.requests)
            by_clients = {n: images_a_second(address, n, 1, arguments.requests) for n in CLIENTS}
            by_images = {n: images_a_second(address, 1, n, max(arguments.requests // n, 5)) for n in IMAGES}
    figures = {
        "latency_ms": latency,
        "start_up_s": start_up,
        "images_a_second_by_clients": by_clients,
        "images_a_second_by_images_a_request": by_images,
    }
    print(json.dumps(figures, indent=2))
    write_json(arguments.json, {"machine": facts, **figures})


if __name__ == "__main__":
    main()
