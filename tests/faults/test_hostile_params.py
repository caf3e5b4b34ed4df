"""Parameters that nobody should give: each is refused with its key before any work; every valid one comes back."""

import datetime
import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks.params import Params, ParamsError, load_params, parse_params
from tests.conftest import ROOT, VALUES, with_overrides
from tests.test_params import leaves

KEYS = leaves(VALUES)
SCHEMA = Params.model_json_schema(by_alias=True)
BOUND_TO_OTHERS = {
    *("acquire.classes", "acquire.positive_class", "validate.min_side", "validate.max_side", "benchmark"),
    *("train_classifier.architecture", "train_classifier.pretrained", "active_learning.acquisition"),
    *("active_learning.dropout", "active_learning.start.share", "active_learning.query", "active_learning.eps"),
    *("active_learning.adversarial_copies", "active_learning.max_images", "attack.eps", "attack.keep_eps"),
    "attack.norm",
    *("attack.attacks", "attack.pgd.n_steps", "attack.sweep.n_steps", "attack.suite.n_queries", "attack.max_images"),
    *("attack.suite.max_label_images", "analyze.eps", "analyze.evasion.eps", "analyze.evasion.max_images"),
    *("defences.trades.adversary.pgd.n_restarts", "acquire.folder"),
}
"""Keys whose values must fit those of others, or be more than their type says; tests of their own are about them."""


def value_of(key: str) -> Any:
    value = VALUES
    for name in key.split("."):
        value = value[name]
    return value


def is_told(key: str, told: str) -> bool:
    """Whether a message is about a key: by its dotted name, or by its section where it must fit another one there."""
    section, _, name = key.rpartition(".")
    # the kind of a defence is told at the defence
    return key.removesuffix(".kind") in told or (f"{section}: " in told and name in told)


def refusal(overrides: dict[str, Any]) -> str | None:
    try:
        parse_params(with_overrides(overrides))
    except ParamsError as error:
        return str(error)
    return None


OF_NO_FIELD = [math.nan, math.inf, -math.inf, None, {"x": 1}, {}, datetime.date(2020, 1, 1), b"8", {8}, 10**400]
OF_NO_FIELD += ["\ud800"]
OF_NO_FIELD_OF = {
    "boolean": [0, 1, "true", 1.0, [], "8", 1.5],
    "integer": [True, "8", 1.5, -1, [], [8]],
    "number": [True, "8", -1, -0.5, [], [0.5]],
    "string": [True, 8, 1.5, -1, [], ["x"], ""],
    "array": [True, 8, "8", 1.5],
}
"""By JSON schema's type."""


@pytest.mark.parametrize("key", KEYS)
def test_no_field_takes_what_is_of_another_type_or_no_number(key: str) -> None:
    for junk in OF_NO_FIELD + OF_NO_FIELD_OF[schema_of(key)["type"]]:
        told = refusal({key: junk})
        assert told is not None, f"{key} takes {junk!r}"
        assert is_told(key, told), f"{junk!r}: {told}"


@pytest.mark.parametrize("key", [key for key in KEYS if isinstance(value_of(key), list)])
@pytest.mark.parametrize("junk", [math.nan, math.inf, True, None, [1], {}, "\ud800"])
def test_no_list_takes_what_is_no_item(key: str, junk: Any) -> None:
    told = refusal({key: [*value_of(key), junk]})
    assert told is not None
    assert is_told(key, told)


@pytest.mark.parametrize("section", sorted({key.rpartition(".")[0] for key in KEYS}))
def test_an_unknown_key_is_told_wherever_it_is(section: str) -> None:
    dotted = f"{section}.epz" if section else "epz"
    told = refusal({dotted: 8})
    assert told is not None
    if section != "defences":
        assert f"{dotted}: unknown key" in told
    else:
        assert dotted in told


@settings(deadline=None)
@given(eps=st.lists(st.floats(-1, 300) | st.sampled_from([0, 1, 2, 8, 0.031, math.nan, math.inf]), max_size=4))
@example([])
@example([8.0, 8.0])
@example([8.0, 4.0])
def test_a_grid_of_eps_is_taken_if_it_rises_within_the_range_and_refused_otherwise(eps: list[float]) -> None:
    told = refusal({"attack.eps": eps, "analyze.eps": eps[-1] if eps else 1, "analyze.evasion.eps": eps[-1:]})
    rises = all(low < high for low, high in pairwise(eps))
    if eps and rises and all(0 < value <= 255 for value in eps) and eps[-1] >= 0.1:
        assert told is None
    else:
        assert told is not None
        assert "attack" in told
        assert "eps" in told


@pytest.mark.parametrize("fraction", [8 / 255, 0.031, 1 / 255, 0.0627])
@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("attack.eps", lambda eps: [eps / 2, eps]),
        ("active_learning.eps", lambda eps: eps),
        ("defences.trades.adversary.eps", lambda eps: [eps / 2, eps]),
    ],
)
def test_eps_that_is_a_fraction_of_the_range_is_told_what_to_write(key: str, form: Any, fraction: float) -> None:
    told = refusal({key: form(fraction)})
    assert told is not None
    section = key.rpartition(".")[0]
    assert f"{section}: eps is in units of 1/255, and {fraction:g} looks like a fraction of the value range" in told
    assert f"write {255 * fraction:.3g} for" in told


@pytest.mark.parametrize(("key", "value"), [("attack.keep_eps", [1, 1]), ("analyze.evasion.eps", [1, 1])])
def test_eps_that_are_chosen_from_the_grid_do_not_repeat(key: str, value: list[float]) -> None:
    section, _, name = key.rpartition(".")
    told = refusal({key: value})
    assert told is not None
    assert f"{section}: {name} must not repeat, not [1.0, 1.0]" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "must hold sections such as 'attack:', but holds NoneType"),
        (b"# nothing but a comment", "must hold sections"),
        (b"- seed", "must hold sections such as 'attack:', but holds list"),
        (b"seed", "must hold sections such as 'attack:', but holds str"),
        (b"seed: 1\nseed: 2", 'is not valid YAML: (?s:.*)found duplicate key "seed"'),
        (b"attack:\n  eps: [1]\n  eps: [2]", 'is not valid YAML: (?s:.*)found duplicate key "eps"'),
        (b"seed: !!python/object/apply:os.system [touch was_here]", "is not valid YAML: could not determine a constr"),
        (b"!!python/object/new:tuple [[1]]", "is not valid YAML: could not determine a constructor"),
        (b"seed: !mine 1", "is not valid YAML: could not determine a constructor for the tag '!mine'"),
        (b"seed: 1\n---\nseed: 2", "is not valid YAML: expected a single document"),
        (b"seed: [1", "is not valid YAML"),
        (b"\tseed: 1", "is not valid YAML"),
        (b"seed: \x00", "is not valid YAML"),
        ("# Schärfe\nseed: 1".encode("latin-1"), "is not UTF-8 .*; save it as that"),
        ("seed: 1".encode("utf-16"), "is not UTF-8 .*; save it as that"),
        (b"seed: 2020-01-01", "seed: must be text, a number, true, false, a list or a section, not date"),
        (b"seed: 2020-99-99", "holds an impossible value: month must be in 1..12"),
        (b"seed: !!binary aGVsbG8=", "seed: must be text, .* not bytes"),
        (b"attack: {eps: !!set {1}}", "attack.eps: must be text, .* not set"),
        (b"attack: {1: 2}", "attack.1: a key must be text"),
        (b"true: 1", "True: a key must be text"),
        (b"? [1, 2]\n: 3", r"\(1, 2\): a key must be text"),
        (b"attack: {eps: [18446744073709551616]}", r"attack.eps\[0\]: a whole number must have less than 64 bits"),
    ],
)
def test_a_file_that_holds_no_parameters_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=rf"^params\.yaml (can't be used:\n  )?{told}"):
        load_params()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"], "no tag has done anything"


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="can't be read: Is a directory"):
        load_params(tmp_path)


def test_a_mark_of_utf8_at_the_start_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + (ROOT / "params.yaml").read_bytes())
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "params.yaml")


def test_a_step_says_it_in_a_sentence_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("attack: {eps: 8}")
    (tmp_path / "data" / "acquire").mkdir(parents=True)
    (tmp_path / "data" / "acquire" / "kept.txt").touch()
    command = [sys.executable, "-m", "tasks.acquire"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("acquire: params.yaml can't be used:\n  seed: missing")
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "data" / "acquire" / "kept.txt").exists()


def schema_of(key: str) -> dict[str, Any]:
    """JSON schema of a field; of a defence, that of its kind."""
    schema, value = SCHEMA, VALUES
    for name in key.split("."):
        value = value[name]
        # rows of defences are told by the pattern of their names
        (of_any,) = schema.get("patternProperties", {"": {}}).values()
        schema = schema["properties"][name] if "properties" in schema else of_any
        if "discriminator" in schema:
            field = schema["discriminator"]["propertyName"]
            schema = {"$ref": schema["discriminator"]["mapping"][value[field]]}
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def valid(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows."""
    if "$ref" in schema:
        return valid(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "oneOf" in schema:
        return st.one_of(*map(valid, schema["oneOf"]))
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            step, most = schema.get("multipleOf", 1), schema.get("maximum", schema.get("exclusiveMaximum", 2**31) - 1)
            return st.integers(math.ceil(schema["minimum"] / step), most // step).map(lambda n: n * step)
        case "number":
            least, most = schema.get("minimum"), schema.get("maximum")
            above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
            return st.floats(
                above if least is None else least,
                below if most is None else most,
                exclude_min=least is None and above is not None,
                exclude_max=most is None and below is not None,
                allow_nan=False,
                allow_infinity=False,
            )
        case "string":
            if "pattern" in schema:
                return st.from_regex(schema["pattern"], fullmatch=True)
            return st.text(st.characters(codec="utf-8"), min_size=schema.get("minLength", 0))
        case "array" if "prefixItems" in schema:
            return st.tuples(*map(valid, schema["prefixItems"])).map(list)
        case "array":
            return st.lists(valid(schema["items"]), min_size=schema.get("minItems", 0), max_size=4)
        case "object":
            return st.fixed_dictionaries({name: valid(child) for name, child in schema["properties"].items()})
    raise AssertionError(f"no values are drawn for {schema}")


def with_a_middle(step: dict[str, Any]) -> dict[str, Any]:
    """A step of image processing whose window, if it has one, is odd."""
    return step | {"window": step["window"] | 1} if "window" in step else step


def fitting(key: str) -> st.SearchStrategy[Any]:
    if key.endswith("adversary.eps"):
        return st.lists(st.floats(0.1, 255), min_size=2, max_size=2).map(sorted)
    if key.endswith("n_draws") and "steps" in value_of(key.rpartition(".")[0]):
        return st.just(value_of(key))
    if key.endswith(".kind"):
        return st.just(value_of(key))
    if key.endswith(".steps"):
        return valid(schema_of(key)).map(
            lambda steps: [*map(with_a_middle, steps), {"method": "gaussian_noise", "std": 0.1}]
        )
    return valid(schema_of(key))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_every_valid_value_is_taken_and_comes_back_as_it_was(tmp_path: Path, data: st.DataObject) -> None:
    free = sorted(set(KEYS) - BOUND_TO_OTHERS)
    keys = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=6, unique=True))
    overrides = {key: data.draw(fitting(key), label=key) for key in keys}
    params = parse_params(with_overrides(overrides))
    flat = params.flat()
    assert {key: flat[key] for key in keys} == overrides

    dumped = json.loads(params.model_dump_json(by_alias=True))
    assert parse_params(dumped) == params
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(dumped, file)
    assert load_params(tmp_path / "params.yaml") == params
