"""The forms of the flows, which Prefect creates from their signatures: descriptions and bounds of the fields."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from tests.all_flows import all_flows
from tests.conftest import ROOT

FLOWS = all_flows()


@pytest.mark.parametrize("name", FLOWS)
def test_every_field_is_described(name: str) -> None:
    fields = parameter_schema(FLOWS[name].fn).properties
    assert fields
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("flow", "name", "value", "bound"),
    [
        ("labelling", "n_images", 0, "greater than or equal to 1"),
        ("labelling", "n_rounds", 100, "less than or equal to 99"),
        ("labelling", "acquisition", "guess", "Input should be 'random'"),
        ("robustness_audit", "model", "m", "at least 3 characters"),
        ("export", "path", "champion.onnx", "should match pattern"),
        ("pipeline", "workers", {"n_workers": 0}, "greater than or equal to 1"),
        ("promote", "margin", 1.5, "less than 1"),
        ("promote", "name", "a/b", "should match pattern"),
        ("register", "name", "", "should match pattern"),
        ("seeds", "seeds", [], "at least 1 item"),
        ("seeds", "seeds", [0, -1], "greater than or equal to 0"),
        ("seeds", "seeds", [0, 2**32], "less than 4294967296"),
    ],
)
def test_a_value_outside_its_bounds_is_rejected_before_the_run_starts(
    flow: str, name: str, value: object, bound: str
) -> None:
    needed = {"pool": "pool"} if flow == "labelling" else {}
    with pytest.raises(ParameterTypeError, match=f"{name}.*{bound}"):
        FLOWS[flow].validate_parameters(needed | {name: value})


def test_a_form_shows_the_bounds() -> None:
    seeds = parameter_schema(FLOWS["seeds"].fn).properties["seeds"]
    assert (seeds["minItems"], seeds["maxItems"], seeds["items"]["minimum"]) == (1, 100, 0)
    margin = parameter_schema(FLOWS["promote"].fn).properties["margin"]
    assert (margin["exclusiveMinimum"], margin["exclusiveMaximum"]) == (0, 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["promote", "--margin", "1.5"], "promote: Flow run received invalid parameters:\n - margin: .* less than 1\n"),
        (["seeds", "0"], r"seeds: seeds: \[0\] is a single run\. Give at least 2 seeds, or .*n_folds\.\n"),
    ],
)
def test_the_command_line_rejects_a_value_outside_its_bounds_with_one_message(command: list[str], message: str) -> None:
    flow, *arguments = command
    ended = subprocess.run(
        [sys.executable, "-m", f"flows.{flow}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert re.fullmatch(message, ended.stderr), ended.stderr


def test_a_slow_server_adds_nothing_to_the_message_of_the_command_line() -> None:
    code = """
        import asyncio
        from prefect.events import emit_event
        from prefect.events.clients import AssertingEventsClient
        from prefect.events.worker import EventsWorker
        from flows.promote import main

        async def emit(client, event):
            await asyncio.sleep(0.2)

        AssertingEventsClient._emit = emit
        EventsWorker.set_client_override(AssertingEventsClient)
        try:
            main()
        finally:
            for _ in range(3):
                emit_event("promoted", {"prefect.resource.id": "model"})
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), "--margin", "1.5"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:1/api"},  # no server is asked or started
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert re.fullmatch("promote: Flow run received invalid parameters:\n - margin: .* less than 1\n", ended.stderr)
