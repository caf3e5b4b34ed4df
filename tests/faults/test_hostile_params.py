"""Invalid parameters of any kind: each is an error that names its key, and each valid value is kept unchanged."""

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
CONSTRAINED = {
    *("acquire.classes", "acquire.folder", "acquire.positive_class", "classifier.source"),
    *("acquire.table.dicom_tags", "validate.min_side", "validate.max_side", "validate.expectations"),
    *("prepare.image_size", "prepare.intensity.window", "prepare.intensity.percentiles"),
    *("prepare.split.fold", "prepare.split.n_folds"),
    *("acquire.table.path", "acquire.table.label", "acquire.table.patient", "acquire.table.split"),
    "acquire.table.subgroups",
    *("train_classifier.architecture", "train_classifier.pretrained", "selected_defences"),
    *("defences.trades.adversary.pgd.n_random_starts", "attack.norm", "attack.eps", "attack.saved_eps"),
    *("attack.attacks", "attack.pgd.n_steps", "attack.effort", "attack.max_images"),
    *("attack.max_black_box_images", "attack.max_art_reference_images", "attack.max_validation_images"),
    *("analyze.eps", "analyze.detector_evasion.eps"),
    *("analyze.detector_evasion.max_images", "active_learning.acquisition_functions", "active_learning.dropout"),
    *("active_learning.initial_set.fraction", "active_learning.query_fraction", "active_learning.eps"),
    *("active_learning.adversarial_augmentation", "active_learning.max_attacked_images"),
}
"""Keys whose values have constraints beyond their JSON schema, for instance by the values of other keys. Other tests
cover them."""


def value_of(key: str) -> Any:
    value = VALUES
    for name in key.split("."):
        value = value[name]
    return value


def names(key: str, message: str) -> bool:
    """Return whether a message names a key: dotted, or as its section and its name, where values depend on others."""
    section, _, name = key.rpartition(".")
    # an error about the kind of a defence names the defence
    return key.removesuffix(".kind") in message or (f"{section}: " in message and name in message)


def error_of(overrides: dict[str, Any]) -> str | None:
    """Return the message about the parameters with these values; None if they are valid."""
    try:
        parse_params(with_overrides(overrides))
    except ParamsError as error:
        return str(error)
    return None


INVALID_ANYWHERE: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    None,
    {"x": 1},
    {},
    datetime.date(2020, 1, 1),
    b"8",
    {8},
    10**400,
]
INVALID_ANYWHERE += ["\ud800"]
INVALID_BY_TYPE = {
    "boolean": [0, 1, "true", 1.0, [], "8", 1.5],
    "integer": [True, "8", 1.5, -1, [], [8]],
    "number": [True, "8", -1, -0.5, [], [0.5]],
    "string": [True, 8, 1.5, -1, [], ["x"], ""],
    "array": [True, 8, "8", 1.5],
}
"""Type in the JSON schema -> values that it does not include."""


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_is_an_error_in_every_field(key: str) -> None:
    # "" leaves out an optional file or column
    allowed = [""] if value_of(key) == "" else []
    for invalid in [*INVALID_ANYWHERE, *INVALID_BY_TYPE[schema_of(key)["type"]]]:
        if invalid in allowed:
            continue
        message = error_of({key: invalid})
        assert message is not None, f"{key} accepts {invalid!r}"
        assert names(key, message), f"{invalid!r}: {message}"


@pytest.mark.parametrize("key", [key for key in KEYS if isinstance(value_of(key), list)])
@pytest.mark.parametrize("invalid", [math.nan, math.inf, True, None, [1], {}, "\ud800"])
def test_an_invalid_item_is_an_error_in_every_list(key: str, invalid: Any) -> None:
    message = error_of({key: [*value_of(key), invalid]})
    assert message is not None
    assert names(key, message)


@pytest.mark.parametrize("section", sorted({key.rpartition(".")[0] for key in KEYS}))
def test_an_unknown_key_is_an_error_in_every_section(section: str) -> None:
    dotted = f"{section}.epz" if section else "epz"
    message = error_of({dotted: 8})
    assert message is not None
    if section != "defences":
        assert f"{dotted}: unknown key" in message
    else:
        assert dotted in message


@given(eps=st.lists(st.floats(-1, 300) | st.sampled_from([0, 1, 2, 8, 0.031, math.nan, math.inf]), max_size=4))
@example([])
@example([8.0, 8.0])
@example([8.0, 4.0])
def test_a_grid_of_eps_is_valid_only_if_it_rises_within_the_range(eps: list[float]) -> None:
    message = error_of(
        {"attack.eps": eps, "analyze.eps": eps[-1] if eps else 1, "analyze.detector_evasion.eps": eps[-1:]}
    )
    rises = all(low < high for low, high in pairwise(eps))
    if eps and rises and all(0 < value <= 255 for value in eps) and eps[-1] >= 0.1:
        assert message is None
    else:
        assert message is not None
        assert "attack" in message
        assert "eps" in message


@pytest.mark.parametrize("fraction", [8 / 255, 0.031, 1 / 255, 0.0627])
@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("attack.eps", lambda eps: [eps / 2, eps]),
        ("active_learning.eps", lambda eps: eps),
        ("defences.trades.adversary.eps_range", lambda eps: [eps / 2, eps]),
    ],
)
def test_the_error_of_an_eps_that_is_a_fraction_of_the_range_has_the_value_to_write(
    key: str, form: Any, fraction: float
) -> None:
    message = error_of({key: form(fraction)})
    assert message is not None
    section = key.rpartition(".")[0]
    assert f"{section}: eps {fraction:g} looks like a fraction of the value range. eps is in units of 1/255" in message
    assert f"Write {255 * fraction:.3g} for" in message


@pytest.mark.parametrize(("key", "value"), [("attack.saved_eps", [1, 1]), ("analyze.detector_evasion.eps", [1, 1])])
def test_a_selection_of_eps_with_a_repeated_value_is_an_error(key: str, value: list[float]) -> None:
    section, _, name = key.rpartition(".")
    message = error_of({key: value})
    assert message is not None
    assert f"{section}: {name} [1.0, 1.0] must not repeat a value" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold sections such as 'attack:', not NoneType"),
        (b"# nothing but a comment", "must hold sections"),
        (b"- seed", "must hold sections such as 'attack:', not list"),
        (b"seed", "must hold sections such as 'attack:', not str"),
        (b"seed: 1\nseed: 2", 'is not valid YAML: (?s:.*)found duplicate key "seed"'),
        (b"attack:\n  eps: [1]\n  eps: [2]", 'is not valid YAML: (?s:.*)found duplicate key "eps"'),
        (b"seed: !!python/object/apply:os.system [touch executed]", "is not valid YAML: could not determine a constr"),
        (b"!!python/object/new:tuple [[1]]", "is not valid YAML: could not determine a constructor"),
        (b"seed: !mine 1", "is not valid YAML: could not determine a constructor for the tag '!mine'"),
        (b"seed: 1\n---\nseed: 2", "is not valid YAML: expected a single document"),
        (b"seed: [1", "is not valid YAML"),
        (b"\tseed: 1", "is not valid YAML"),
        (b"seed: \x00", "is not valid YAML"),
        ("# Schärfe\nseed: 1".encode("latin-1"), "is not UTF-8 .* Save it as UTF-8"),
        ("seed: 1".encode("utf-16"), "is not UTF-8 .* Save it as UTF-8"),
        (b"seed: 2020-01-01", "seed: must be text, a number, true, false, a list or a section, not date"),
        (b"seed: 2020-99-99", "holds a value that is not valid: month must be in 1..12"),
        (b"seed: !!binary aGVsbG8=", "seed: must be text, .* not bytes"),
        (b"attack: {eps: !!set {1}}", "attack.eps: must be text, .* not set"),
        (b"attack: {1: 2}", "attack.1: a key must be text"),
        (b"true: 1", "True: a key must be text"),
        (b"? [1, 2]\n: 3", r"\(1, 2\): a key must be text"),
        (b"attack: {eps: [18446744073709551616]}", r"attack.eps\[0\]: a whole number must have fewer than 64 bits"),
    ],
)
def test_a_file_without_valid_parameters_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=rf"^params\.yaml (is not valid:\n  )?{message}"):
        load_params()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"], "a tag has run code"


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is not readable: Is a directory"):
        load_params(tmp_path)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + (ROOT / "params.yaml").read_bytes())
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "params.yaml")


def test_a_step_ends_with_the_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("attack: {eps: 8}")
    (tmp_path / "data" / "acquire").mkdir(parents=True)
    (tmp_path / "data" / "acquire" / "kept.txt").touch()
    command = [sys.executable, "-m", "tasks.acquire"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("acquire: params.yaml is not valid:\n  seed: missing")
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "data" / "acquire" / "kept.txt").exists()


def schema_of(key: str) -> dict[str, Any]:
    """JSON schema of a field; for a defence, the schema of its kind."""
    schema, value = SCHEMA, VALUES
    for name in key.split("."):
        value = value[name]
        # the schema of a defence is that of every key with a valid name
        (of_any,) = schema.get("patternProperties", {"": {}}).values()
        schema = schema["properties"][name] if "properties" in schema else of_any
        if "discriminator" in schema:
            field = schema["discriminator"]["propertyName"]
            schema = {"$ref": schema["discriminator"]["mapping"][value[field]]}
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def valid(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Draw values that a schema allows."""
    if "$ref" in schema:
        return valid(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if alternatives := schema.get("oneOf") or schema.get("anyOf"):
        return st.one_of(*map(valid, alternatives))
    match schema["type"]:
        case "null":
            return st.none()
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
    raise AssertionError(f"no strategy for {schema}")


def with_odd_window(transform: dict[str, Any]) -> dict[str, Any]:
    """A transform whose window, if it has one, is odd."""
    return transform | {"window_size": transform["window_size"] | 1} if "window_size" in transform else transform


def valid_values(key: str) -> st.SearchStrategy[Any]:
    """Draw valid values of a key whose other keys are as in params.yaml."""
    if key.endswith("adversary.eps_range"):
        return st.lists(st.floats(0.1, 255), min_size=2, max_size=2).map(sorted)
    if key.endswith("n_eot_samples") and "transforms" in value_of(key.rpartition(".")[0]):
        return st.just(value_of(key))
    if key.endswith(".kind"):
        return st.just(value_of(key))
    if key.endswith(".transforms"):
        return valid(schema_of(key)).map(
            lambda transforms: [*map(with_odd_window, transforms), {"kind": "gaussian_noise", "std": 0.1}]
        )
    return valid(schema_of(key))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_valid_value_is_accepted_and_kept_unchanged(tmp_path: Path, data: st.DataObject) -> None:
    free = sorted(set(KEYS) - CONSTRAINED)
    keys = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=6, unique=True))
    overrides = {key: data.draw(valid_values(key), label=key) for key in keys}
    params = parse_params(with_overrides(overrides))
    flat = params.flat()
    assert {key: flat[key] for key in keys} == overrides

    dumped = json.loads(params.model_dump_json(by_alias=True))
    assert parse_params(dumped) == params
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(dumped, file)
    assert load_params(tmp_path / "params.yaml") == params
