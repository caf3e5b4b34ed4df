"""Checks of an imported classifier: agreement with the original, and gradients."""

from typing import Any

from tasks.evaluation.check_inputs import Status
from tasks.evaluation.checks import CheckResult
from tasks.params import UNDEFENDED


def import_checks(parity: dict[str, Any]) -> list[CheckResult]:
    """Return the checks of an imported classifier.

    Args:
        parity: values of ``parity.json`` of the step train_classifier.
    """
    difference = parity.get("difference")
    if parity["status"] == "compared":
        compared = [f"{parity['n_reference_outputs']} reference outputs"] if difference is not None else []
        compared += ["the expected accuracy"] if "expected_accuracy" in parity else []
        explanation = f"the imported classifier agrees with {' and '.join(compared)}"
    else:
        explanation = (
            "the imported classifier was not compared with the original. Set classifier.reference_outputs or "
            "classifier.expected_accuracy"
        )
    status: Status = "PASS" if parity["status"] == "compared" else "WARN"
    name = "the imported classifier gives the outputs of the original"
    results = [CheckResult(UNDEFENDED, "import_parity", name, status, difference, explanation)]
    if not parity["has_gradients"]:
        explanation = (
            "the classifier can only be queried, so no attack uses its gradients. Rows of the threat model adaptive "
            "use the gradients of the surrogates: their accuracy is an upper bound of the robust accuracy"
        )
        name = "adaptive attacks use the gradients of the target"
        results.append(CheckResult(UNDEFENDED, "white_box_access", name, "WARN", None, explanation))
    return results
