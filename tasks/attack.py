"""Step ``attack``: adversarial examples of the undefended classifier, by every attack at every eps."""

from tasks.attacks.lanes import attack_target
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params
from tasks.tracking import Tracker


def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Attack the bare classifier end to end, and record what it makes of each adversarial example.

    They are kept, too: defences are shown them, and the analyses look at them.
    """
    attack_target(workspace, params, tracker, UNDEFENDED)


if __name__ == "__main__":
    from tasks.runner import main

    main(attack)
