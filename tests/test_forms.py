"""The forms of the flows, as Prefect makes them of the signatures: every field is told, and bounds are kept."""

import importlib
from typing import Any

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

FLOWS = {
    "active_learning": "active_learning",
    "audit": "robustness_audit",
    "export": "export",
    "flow": "pipeline",
    "promote": "promote",
    "register": "register",
    "seeds": "seeds",
}


def flow_of(module: str) -> Flow[..., Any]:
    found = getattr(importlib.import_module(f"flows.{module}"), FLOWS[module])
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("module", FLOWS)
def test_every_field_is_described(module: str) -> None:
    fields = parameter_schema(flow_of(module).fn).properties
    assert fields
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("module", "name", "value", "bound"),
    [
        ("active_learning", "n_images", 0, "greater than or equal to 1"),
        ("active_learning", "n_rounds", 100, "less than or equal to 99"),
        ("active_learning", "acquisition", "guess", "Input should be 'random'"),
        ("audit", "model", "m", "at least 3 characters"),
        ("export", "path", "champion.onnx", "should match pattern"),
        ("flow", "workers", {"n_workers": 0}, "greater than or equal to 1"),
        ("promote", "alpha", 0.5, "less than 0.5"),
        ("promote", "name", "a/b", "should match pattern"),
        ("register", "name", "", "should match pattern"),
        ("seeds", "seeds", [0], "at least 2 items"),
        ("seeds", "seeds", [0, -1], "greater than or equal to 0"),
        ("seeds", "seeds", [0, 2**32], "less than 4294967296"),
    ],
)
def test_a_value_out_of_bounds_is_refused_before_the_run_begins(
    module: str, name: str, value: object, bound: str
) -> None:
    needed = {"pool": "pool"} if module == "active_learning" else {}
    with pytest.raises(ParameterTypeError, match=f"{name}.*{bound}"):
        flow_of(module).validate_parameters(needed | {name: value})


def test_the_form_itself_has_the_bounds() -> None:
    seeds = parameter_schema(flow_of("seeds").fn).properties["seeds"]
    assert (seeds["minItems"], seeds["maxItems"], seeds["items"]["minimum"]) == (2, 100, 0)
    alpha = parameter_schema(flow_of("promote").fn).properties["alpha"]
    assert (alpha["exclusiveMinimum"], alpha["exclusiveMaximum"]) == (0, 0.5)
