"""Step ``check_params``: check the parameters before any other step uses them.

All other steps depend on this one. Its output never changes, so a changed parameter makes only those steps stale that
read it. DVC puts names of params.yaml into commands and paths. The runner checks these names before this step begins.
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
    (height, width), n_channels = params.prepare.image_size, params.prepare.channels
    key = "train_classifier.architecture"
    own = {key: params.train_classifier.architecture}
    surrogates = enumerate(params.train_surrogates)
    others = {f"train_surrogates[{number}].architecture": each.architecture for number, each in surrogates}
    for name, architecture in (others | own if params.classifier.source == "train" else others).items():
        check_image_size(name, architecture, (height, width), "prepare.image_size", n_channels)
    factor = params.active_learning.downsampling_factor
    small = height // factor, width // factor
    check_image_size(key, own[key], small, "active_learning.downsampling_factor", n_channels)
    write_json({"valid": True}, workspace.checked_params)


if __name__ == "__main__":
    from tasks.runner import main

    main(check_params)
