"""Networks that are only queried: they return scores or labels, and have no gradients."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TIMEOUT_SECONDS = 60
"""Maximum time without any byte of an answer."""
MAX_ANSWER_SECONDS = 300
"""Maximum time until an answer is complete."""
MAX_ANSWER_BYTES = 2**26
N_TRIES = 3


class Queried(nn.Module):
    """A function of NumPy arrays as a network.

    Args:
        query: takes float32 ``(N, C, H, W)``, returns scores ``(N, ...)`` or labels ``(N,)``.
        name: for digests.
    """

    def __init__(self, query: Callable[[np.ndarray], np.ndarray], name: str) -> None:
        super().__init__()
        self._query = query
        self._name = name

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the function, without a gradient."""
        answer = np.asarray(self._query(images.detach().cpu().numpy()), dtype=np.float32)
        if not answer.ndim or len(answer) != len(images) or not np.isfinite(answer).all():
            raise ValueError(
                f"{self._name}: output for {len(images)} images: {str(answer)[:80]}. One finite row each is allowed"
            )
        return torch.from_numpy(answer).to(images.device)

    def extra_repr(self) -> str:
        """Return the name."""
        return self._name

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Queried":
        """Return the same object: sessions and connections have no copies, and no weights that could change."""
        return self


def http_query(address: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that queries a server by the protocol of KServe V1, which MLflow and TensorFlow also serve.

    The request is ``{"instances": images}``, each image a nested list ``(C, H, W)``; the answer
    ``{"predictions": rows}``, each row a list of scores or the number of the class.

    Args:
        address: of the server, ``http`` or ``https``.
    """

    def query(images: np.ndarray) -> np.ndarray:
        body = json.dumps({"instances": images.tolist()}).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310  checked by the parameter
        for attempt in range(N_TRIES):
            try:
                content = _read_within(MAX_ANSWER_SECONDS, request)
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
                if attempt + 1 == N_TRIES or isinstance(error, urllib.error.HTTPError | _SlowAnswer):
                    reason = str(error).strip() or type(error).__name__
                    raise ValueError(
                        f"classifier.address: {address} does not answer: {reason}. A server that answers "
                        '{"instances": [...]} with {"predictions": [...]} is needed. Start it, or correct the address'
                    ) from error
        try:
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
            return np.asarray(json.loads(content)["predictions"], dtype=np.float32)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"classifier.address: {address} gave an answer that is not readable ({type(error).__name__}: {error}). "
                '{"predictions": [...]} with a row of numbers for each image is needed. Correct the server'
            ) from error

    return query


def onnx_outputs(content: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function that runs an ONNX model with onnxruntime, on one thread, and returns all its outputs.

    Args:
        content: of the ONNX file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def query(images: np.ndarray) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, {name: images})
        return outputs

    return query


def onnx_query(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that returns the first output of an ONNX model; see :func:`onnx_outputs`."""
    query = onnx_outputs(content)
    return lambda images: query(images)[0]


class _SlowAnswer(TimeoutError):
    """An answer that is not complete in time."""


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, *arguments: Any, **named: Any) -> None:
        """Refuse the redirect, which would send a request without the images."""
        raise ValueError(
            f"classifier.address: {req.full_url} redirects to another address. Redirects are not followed, because "
            "they drop the images. Set the address that answers"
        )


def _read_within(seconds: float, request: urllib.request.Request) -> bytes:
    """Return the content of an answer, of which at most one byte is beyond :data:`MAX_ANSWER_BYTES`.

    A thread reads it, because the timeout of a socket starts anew with each byte.

    Raises:
        TimeoutError: the answer is not complete in time.
    """
    answered: Future[bytes] = Future()

    def read() -> None:
        try:
            with urllib.request.build_opener(_RefuseRedirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
                answered.set_result(answer.read(MAX_ANSWER_BYTES + 1))
        except BaseException as error:
            answered.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    if not wait([answered], seconds).done:
        raise _SlowAnswer(f"the answer is not complete after {seconds:g} s")
    return answered.result()


class MaiteNetwork(nn.Module):
    """A model of MAITE's protocol for image classification as a network.

    The protocol is structural: an object that takes a sequence of images ``(C, H, W)`` and returns a sequence of scores
    ``(K,)``. Gradients pass if the object computes with torch.

    Args:
        model: object of the protocol.
    """

    def __init__(self, model: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        super().__init__()
        # a module is registered, so that its weights move and are saved
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``(N, K)``."""
        rows = self.model(list(images))
        return torch.stack([torch.as_tensor(row, device=images.device) for row in rows]).float()
