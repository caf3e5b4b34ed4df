"""``python -m flows.data_changes``: what changed in the data against a version in git, the last one if none is named.

It is about the manifests that ``validate`` wrote; the earlier one comes out of DVC's cache or its remote. The report,
whose inputs are files, compares with the reference instead, a file in git: ``--keep`` makes the present data that.
"""

import argparse
import io
import sys
from typing import TYPE_CHECKING

from tasks.core.workspace import Workspace
from tasks.dataset.comparison import drift, image_changes, write_reference
from tasks.tracking import masked

if TYPE_CHECKING:
    import pandas as pd


def manifest_at(workspace: Workspace, revision: str) -> "pd.DataFrame":
    """The manifest of a version in git.

    Raises:
        ValueError: there is no such version, it has none, or neither cache nor remote have it.
    """
    import pandas as pd
    from dvc.api import open as open_at
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    path = workspace.manifest.as_posix()
    try:
        with open_at(path, repo=".", rev=revision, mode="rb") as file:
            return pd.read_parquet(io.BytesIO(file.read()))
    except (DvcException, SCMError, OSError) as error:
        raise ValueError(masked(f"no {path} of {revision} in git, DVC's cache or its remote: {error}")) from None


def main() -> None:
    """Print how many images of each class came, went and changed, and how the manifest's numbers moved."""
    workspace = Workspace()
    parser = argparse.ArgumentParser(prog="python -m flows.data_changes", description=main.__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", help="a commit, tag or branch; HEAD if none is named")
    parser.add_argument(
        "--keep", action="store_true", help=f"write {workspace.reference.as_posix()}, with which the report compares"
    )
    given = parser.parse_args()
    try:
        import pandas as pd

        if not workspace.manifest.is_file():
            raise ValueError(f"{workspace.manifest.as_posix()} is missing: run `dvc repro validate`")
        after = pd.read_parquet(workspace.manifest)
        if given.keep:
            write_reference(after, workspace.reference)
            print(f"{workspace.reference.as_posix()}: {len(after)} images. Commit it.")
            return
        before = manifest_at(workspace, given.revision)
        moved = drift(before, after)
    except ValueError as error:
        sys.exit(f"data_changes: {error}")
    print(f"{workspace.manifest.as_posix()} against {given.revision}\n")
    print(image_changes(before, after).to_string(index=False))
    print("\n" + moved[moved["distance"] > 0].to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
