"""Step ``attack_defence``: one defence under transfer and adaptive attacks."""

from tasks.attacks.attack_run import AttackRun
from tasks.core.workspace import Workspace
from tasks.params import Params, RandomizedSmoothing, read_defence
from tasks.tracking import Tracker


def attack_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    """Attack a defended classifier, and record its prediction for each adversarial example.

    ``transfer``: the adversarial examples that the step ``attack`` computed on the undefended classifier; ``adaptive``:
    attacks end to end through the defence. A defence that can be certified also gets its certified radii.
    """
    tracker.dataset(workspace.prepare, "prepared", "attack")
    run = AttackRun.load(workspace, params, defence)
    run.execute(workspace, tracker)
    settings = read_defence(workspace.defence_settings(defence))
    if isinstance(settings, RandomizedSmoothing):
        from tasks.attacks.certification import certify_target

        certify_target(workspace, params, tracker, defence, settings)


if __name__ == "__main__":
    from tasks.runner import main

    main(attack_defence)
