"""Step ``attack``: attacks on the undefended classifier, by every attack at every eps."""

from tasks.attacks.attack_run import AttackRun
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params
from tasks.tracking import Tracker


def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Attack the undefended classifier end to end, and record its prediction for each adversarial example.

    The perturbations are saved, too: they are transferred to the defences, and the analyses read them.
    """
    tracker.dataset(workspace.prepare, "prepared", "attack")
    run = AttackRun.load(workspace, params, UNDEFENDED)
    run.execute(workspace, tracker)


if __name__ == "__main__":
    from tasks.runner import main

    main(attack)
