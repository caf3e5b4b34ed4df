"""Compare the data with an earlier version: ``python -m flows.data_changes [REVISION]``.

The command compares the manifest of the step ``validate`` with the manifest of a git revision, which comes from DVC's
cache or remote. The report compares with ``data/reference.csv`` instead; ``--keep`` writes this file from the current
manifest.
"""

import argparse
import io
import sys
from typing import TYPE_CHECKING

from tasks.core.workspace import Workspace
from tasks.dataset.data_versions import (
    IDENTITY_COLUMNS,
    NUMERIC_COLUMNS,
    distribution_drift,
    image_changes,
    write_reference,
)
from tasks.tracking import masked

if TYPE_CHECKING:
    import pandas as pd


def manifest_at(workspace: Workspace, revision: str) -> "pd.DataFrame":
    """Read the manifest of a git revision.

    Raises:
        ValueError: the revision or its manifest does not exist, neither DVC's cache nor its remote has the file, or
            the manifest has other columns.
    """
    import pandas as pd
    from dvc.api import open as open_at
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    path = workspace.manifest.as_posix()
    try:
        with open_at(path, repo=".", rev=revision, mode="rb") as file:
            manifest = pd.read_parquet(io.BytesIO(file.read()))
    except (DvcException, SCMError, OSError) as error:
        raise ValueError(
            masked(
                f"{path} of the revision {revision} not found: {error}. The revision must exist, and DVC's cache or "
                "remote must have the file. Name another revision, or run `dvc fetch --all-commits`."
            )
        ) from None
    if missing := [column for column in (*IDENTITY_COLUMNS, *NUMERIC_COLUMNS) if column not in manifest]:
        raise ValueError(
            f"{path} of the revision {revision} lacks the columns {', '.join(missing)}. An older version of this "
            "project wrote it. Name a later revision."
        )
    return manifest


def main() -> None:
    """Print the number of added, removed and changed images of each class, and the drift of the manifest's columns."""
    workspace = Workspace()
    parser = argparse.ArgumentParser(prog="python -m flows.data_changes", description=main.__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", help="a commit, tag or branch (default: %(default)s)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help=f"write {workspace.reference.as_posix()}, the version that the report compares with",
    )
    arguments = parser.parse_args()
    try:
        import pandas as pd

        if not workspace.manifest.is_file():
            raise ValueError(f"{workspace.manifest.as_posix()} not found. Run the step first: dvc repro validate")
        after = pd.read_parquet(workspace.manifest)
        if arguments.keep:
            write_reference(after, workspace.reference)
            print(f"wrote {workspace.reference.as_posix()} with {len(after)} images. Commit it.")
            return
        before = manifest_at(workspace, arguments.revision)
        drift = distribution_drift(before, after)
    except ValueError as error:
        sys.exit(f"data_changes: {error}")
    print(f"{workspace.manifest.as_posix()} against {arguments.revision}\n")
    print(image_changes(before, after).to_string(index=False))
    print("\n" + drift[drift["ks_statistic"] > 0].to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
