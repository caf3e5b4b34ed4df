"""Step ``check_params``: check the parameters before any other step uses them.

All other steps depend on this one. Its output never changes, so that a parameter makes only those steps stale that read
it. DVC puts names of params.yaml into commands and paths: the runner has checked them when this step begins.
"""

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.models.classifier import check_image_size
from tasks.params import Params
from tasks.tracking import Tracker


def check_params(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Pass zero images of every size through the classifiers that will be built.

    Raises:
        ValueError: a classifier does not accept images of a size.
    """
    side, architecture = params.prepare.image_size, params.train_classifier.architecture
    key = "train_classifier.architecture"
    check_image_size(key, architecture, side, "prepare.image_size")
    factor = params.active_learning.downsampling_factor
    check_image_size(key, architecture, side // factor, "active_learning.downsampling_factor")
    write_json({"valid": True}, workspace.checked_params)


if __name__ == "__main__":
    from tasks.runner import main

    main(check_params)
