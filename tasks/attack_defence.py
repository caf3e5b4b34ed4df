"""Step ``attack_defence``: one defence under attack, by who does not know of it and by who does."""

from tasks.attacks.lanes import attack_target
from tasks.core.workspace import Workspace
from tasks.params import Params, RandomizedSmoothing
from tasks.tracking import Tracker


def attack_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    """Attack a defended classifier, and record what it makes of each adversarial example.

    ``transfer``: by what the step ``attack`` crafted on the bare classifier; ``adaptive``: end to end through the
    defence. Where predictions can be certified, the radii are written as well.
    """
    attack_target(workspace, params, tracker, defence)
    settings = params.defences[defence]
    if isinstance(settings, RandomizedSmoothing):
        from tasks.attacks.certification import certify_target

        certify_target(workspace, params, tracker, defence, settings)


if __name__ == "__main__":
    from tasks.runner import main

    main(attack_defence)
