"""The flow ``export``: write a registered model as one file for ``torch.export.load``.

``python -m flows.export ct-robustness@champion champion.pt2``
"""

import argparse
import tempfile
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.command import run_flow
from flows.server import NOTIFY
from tasks.serving import registry
from tasks.serving.export import export_target
from tasks.tracking import EXPERIMENT


@flow(name="export", **NOTIFY)
def export(
    model: Annotated[str, Field(min_length=3)] = f"{EXPERIMENT}@{registry.CHAMPION}",
    path: Annotated[str, Field(pattern=r".+\.pt2$")] = "champion.pt2",
    trust: bool = False,
) -> str:
    """Write a registered model as a ``torch.export`` program, and compare its logits with those of the model.

    Args:
        model: ``name@alias`` or ``name/version``.
        path: path of the new file, ``*.pt2``.
        trust: run code of the bundle's author when it is loaded, or send images to its server, if the bundle needs it.

    Returns:
        A summary in one sentence.
    """
    found = registry.find(model)
    with tempfile.TemporaryDirectory() as folder:
        difference = export_target(registry.download(found, Path(folder), trust), Path(path))
    return f"{path} holds {found.label} ({found.target}). The largest difference of a logit is {difference:.1e}."


def main() -> None:
    """Write a registered model as one file for torch.export.load."""
    parser = argparse.ArgumentParser(prog="python -m flows.export", description=main.__doc__)
    parser.add_argument("model", help="name@alias or name/version, such as ct-robustness@champion")
    parser.add_argument("path", help="path of the new file, *.pt2")
    parser.add_argument("--trust", action="store_true", help="run the code of the author of the model, if it has any")
    print(run_flow(export, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
