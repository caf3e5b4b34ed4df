"""params.yaml: types, bounds, errors that name the dotted key, old keys, and the parameters of each step."""

import math
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tasks.core.workspace import DEFENCE_STEPS
from tasks.params import Params, ParamsError, Section, load_params, parse_params
from tasks.params.params import STEP_PARAMS
from tasks.params.renamed import REMOVED, RENAMED
from tests.conftest import ROOT, VALUES, with_overrides

EXAMPLES = {
    "defences.*.adversary.eps": "defences.trades.adversary.eps",
    "defences.*.adversarial_share": "defences.retrained_autoencoder.adversarial_share",
    "defences.*.ramp": "defences.trades.ramp",
    "defences.*.guide": "defences.feature_guided_autoencoder.guide",
    "defences.*.certification.failure": "defences.randomized_smoothing.certification.failure",
    "defences.*.n_draws": "defences.noise.n_draws",
    "defences.*.before": "defences.jpeg.before",
    "defences.*.steps": "defences.jpeg.steps",
    "*.schedule": "active_learning.training.schedule",
    "*.early_stopping": "train_classifier.early_stopping",
    "*.pgd.relative_step": "attack.pgd.relative_step",
    "*.pgd.n_restarts": "defences.trades.adversary.pgd.n_restarts",
}
"""Old key with a placeholder -> one key of this form."""


def test_the_parameters_of_the_repository_are_valid_and_flat_returns_their_values() -> None:
    flat = load_params(ROOT / "params.yaml").flat()
    assert flat["attack.eps"] == [0.25, 0.5, 1, 2, 4, 8, 16]
    assert flat["validate.min_side"] == VALUES["validate"]["min_side"]
    assert flat["seed"] == 0


def test_all_eps_are_analysed_unless_saved_eps_selects_some() -> None:
    assert parse_params(VALUES).attack.analysed_eps == (0.25, 0.5, 1, 2, 4, 8, 16)
    assert parse_params(with_overrides({"attack.saved_eps": [4, 1]})).attack.analysed_eps == (1, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: Input should be greater than or equal to 0; got -1"),
        ("seed", 0.5, "seed: Input should be a valid integer"),
        ("seed", True, "seed: Input should be a valid integer"),
        ("compute.threads", 0, "compute.threads: .*greater than or equal to 1"),
        ("compute.device", "gpu", "compute.device: Input should be 'auto', 'cpu', 'cuda' or 'mps'; got 'gpu'"),
        ("acquire.classes", ["a"], "acquire.classes: .*at least 2"),
        (
            "acquire.classes",
            ["COVID", "covid"],
            r"acquire.classes: class names \[.*\] must differ by more than upper and lower case",
        ),
        ("acquire.classes", ["é", "e\u0301"], r"acquire.classes: class names .* and the encoding of accents"),
        ("acquire.classes", ["COVID", "=cmd|'x'!A0"], r"acquire.classes: .* has =, \+, - or @ at its start"),
        ("acquire.classes", ["COVID", "x;=1+1"], r"acquire.classes: 'x;=1\+1' has =, \+, - or @ .* after a semicolon"),
        ("acquire.classes", ["COVID", "\uff1d1+1"], r"acquire.classes: .* has =, \+, - or @ at its start"),
        ("acquire.classes", ["COVID", "\t=1"], r"acquire.classes: '\\t=1' contains a control character"),
        ("acquire.classes", ["COVID", "x\r=1"], r"acquire.classes: .* contains a control character"),
        ("acquire.classes", ["COVID", "![z][1]\n\n[1]: host"], r"acquire.classes: .* contains a control character"),
        ("acquire.table.subgroups", ["=1+1"], r"acquire.table.subgroups: the column '=1\+1' has =, \+, - or @"),
        ("acquire.table.subgroups", ["a\nb"], r"acquire.table.subgroups: the column .* contains a control character"),
        ("acquire.classes", [0, 1], r'acquire.classes\[0\]: must be text, but YAML reads 0 as a number .*marks: "0"'),
        ("acquire.positive_class", True, r"acquire.positive_class: must be text, but YAML reads true as a number"),
        ("acquire.classes", ["COVID", "../x"], r"acquire.classes: '\.\./x' is not a valid folder name"),
        (
            "acquire.positive_class",
            "flu",
            r"acquire: positive_class 'flu' must be one of classes \['non-COVID', 'COVID'\]",
        ),
        ("validate.min_side", 5000, "validate: min_side 5000 must not be above max_side 4096"),
        ("validate.max_imbalance_ratio", math.inf, "validate.max_imbalance_ratio: .*finite"),
        ("prepare.image_size", [50, 31], r"prepare.image_size: must be a whole number from 32 .*; got \[50, 31\]"),
        ("prepare.split.strategy", "random", "prepare.split.strategy: .*'stratified' or 'grouped'"),
        ("prepare.split.test_fraction", 1.0, "prepare.split.test_fraction: .*less than 1"),
        ("train_classifier.epochs", 0, "train_classifier.epochs: .*greater than or equal to 1"),
        ("train_classifier.learning_rate", "1e-4", "train_classifier.learning_rate: .*valid number; got '1e-4'"),
        (
            "train_classifier.pretrained",
            True,
            "train_classifier: pretrained: true is not possible for the architecture 'cnn', only for torchvision's",
        ),
        ("train_autoencoder.noise_types", [], "train_autoencoder.noise_types: .*at least 1"),
        (
            "train_autoencoder.noise_types",
            [{"kind": "fog", "strength": 1.0}],
            r"train_autoencoder.noise_types\[0\].kind: .*; got 'fog'",
        ),
        ("attack.eps", [], "attack.eps: .*at least 1"),
        ("attack.eps", [4, 2], r"attack: eps \[4.0, 2.0\] must rise without repeats"),
        ("attack.eps", [2, 2], r"attack: eps \[2.0, 2.0\] must rise without repeats"),
        ("attack.eps", [0], r"attack.eps\[0\]: .*greater than 0"),
        ("attack.eps", [1, math.nan], r"attack.eps\[1\]"),
        ("attack.attacks", ["fgsm", "fgsm"], r"attack: attacks \['fgsm', 'fgsm'\] must not repeat a name"),
        ("attack.attacks", [{"art": "DeepFool"}], "attack: attacks .* must contain fgsm or pgd"),
        ("attack.effort", "huge", "attack.effort: .*'quick', 'standard' or 'exhaustive'"),
        (
            "attack.max_black_box_images",
            1,
            "attack.max_black_box_images 1: at least one image of each of the 2 classes is needed, or 0 for all",
        ),
        ("attack.saved_eps", [3], r"attack: saved_eps \[3.0\] must be among eps"),
        ("attack.saved_eps", [2], r"analyze.eps 1 must be among the saved eps \[2.0\]"),
        (
            "attack.max_images",
            1,
            "attack.max_images 1: at least one image of each of the 2 classes is needed, or 0 for all",
        ),
        ("analyze.eps", 3, r"analyze.eps 3 must be among the saved eps \[0.25, 0.5"),
        ("analyze.claim_bounds.separable_auroc", 1.5, "analyze.claim_bounds.separable_auroc: .*less than 1"),
        ("analyze.false_positive_rate", 0, "analyze.false_positive_rate: .*greater than 0"),
        ("analyze.detector_evasion.eps", [1, 3], r"analyze.detector_evasion.eps \[3.0\] must be among the saved eps"),
        (
            "analyze.detector_evasion.max_images",
            1,
            "analyze.detector_evasion.max_images 1: at least one image of each of the 2 classes is needed, or 0",
        ),
        ("attack.epsilon", [1], "attack.epsilon: unknown key"),
        ("selected_defences", [], "selected_defences: .*at least 1"),
        (
            "selected_defences",
            ["autoencoder", "jpg"],
            r"selected_defences: \['jpg'\] must be among .*'retrained_autoencoder'",
        ),
        (
            "selected_defences",
            ["autoencoder", "autoencoder"],
            r"selected_defences \['autoencoder', 'autoencoder'\] must not repeat a name",
        ),
        (
            "defences",
            {"undefended": {"kind": "autoencoder"}},
            "defences.undefended: this name is reserved for the undefended classifier. Choose another",
        ),
        ("defences", {"auto/encoder": {"kind": "autoencoder"}}, "defences.auto/encoder"),
        ("defences.autoencoder.kind", "magic", "defences.autoencoder: .*'autoencoder', 'denoising_autoencoder'"),
        ("defences.autoencoder.epochs", 3, "defences.autoencoder.epochs: unknown key"),
        (
            "defences.retrained_autoencoder.adversary.pgd.n_steps",
            0,
            r"defences.retrained_autoencoder.adversary.pgd.n_steps: .*greater",
        ),
        (
            "defences.retrained_autoencoder.adversary.eps_range",
            [4, 2],
            r"defences.retrained_autoencoder.adversary: eps_range \[4.0, 2.0\] must be a smallest and",
        ),
        ("defences.unet_autoencoder", {"kind": "denoising_autoencoder"}, "defences.unet_autoencoder.training: missing"),
        ("defences.unet_autoencoder.architecture", "vit", "defences.unet_autoencoder.architecture: .*'residual_unet'"),
        (
            "defences.trades.adversary.pgd.n_random_starts",
            0,
            "defences.trades: adversary.pgd.n_random_starts must be 1",
        ),
        (
            "defences.adversarial_training.clean_weight",
            1.0,
            "defences.adversarial_training.clean_weight: .*less than 1",
        ),
        ("defences.jpeg.transforms", [], "defences.jpeg.transforms: .*at least 1"),
        (
            "defences.jpeg.transforms",
            [{"kind": "jpeg", "quality": 0}],
            r"defences.jpeg.transforms\[0\].quality: .*greater",
        ),
        ("defences.jpeg.transforms", [{"kind": "jpeg"}], r"defences.jpeg.transforms\[0\].quality: missing"),
        ("defences.jpeg.transforms", [{"kind": "blur"}], r"defences.jpeg.transforms\[0\]: .*'jpeg', 'bit_depth'"),
        ("defences.jpeg.n_eot_samples", 2, "defences.jpeg: n_eot_samples must be 1, not 2: no transform is random"),
        ("selected_defences", ["jpeg"], r"one of \['jpeg'\] must be of the kind 'autoencoder'"),
        ("attack.pgd", {}, "attack.pgd.n_steps: missing"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_the_dotted_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_params(with_overrides({key: value}))


def test_all_invalid_values_are_in_one_error() -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(with_overrides({"seed": -1, "attack.eps": [0], "nonsense": 1}))
    assert str(error.value).count("\n") == 3


def test_a_list_with_an_invalid_item_has_one_line_in_the_error() -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(with_overrides({"defences.jpeg.transforms": [{"kind": "jpeg", "quality": 0}]}))
    assert str(error.value).splitlines()[1:] == [
        "  defences.jpeg.transforms[0].quality: Input should be greater than or equal to 1; got 0"
    ]


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_one_error_that_names_the_new_key(tmp_path: Path, old: str) -> None:
    key = EXAMPLES.get(old, old)
    values = with_overrides({})
    *sections, name = key.split(".")
    section = values
    for each in sections:
        section = section[each]
    section[name] = 1
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    with pytest.raises(ParamsError) as error:
        load_params(path)
    new = RENAMED[old]
    advice = "this key was removed. Delete it" if new == REMOVED else f"this key is now {new}"
    assert str(error.value) == f"{path} is not valid:\n  {key}: {advice}"


def test_all_old_keys_of_a_file_are_in_one_error() -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(dict.fromkeys(["benchmark"], 1) | {"attack": {"mode": "both", "keep_eps": [1]}})
    assert str(error.value).splitlines()[1:] == [
        "  benchmark: this key is now selected_defences",
        "  attack.mode: this key was removed. Delete it",
        "  attack.keep_eps: this key is now saved_eps",
    ]


def of_all_steps(params: Params) -> dict[tuple[str, str | None], dict[str, Any]]:
    """The parameters that each step reads, for each selected defence where the step runs once for each.

    The step check_params, whose output never changes, reads all parameters.
    """
    return {
        (step, defence): params.of_step(step, defence)
        for step in STEP_PARAMS
        if step != "check_params"
        for defence in (params.selected_defences if step in DEFENCE_STEPS else [None])
    }


@pytest.mark.parametrize("row", sorted(set(VALUES["defences"]) - set(VALUES["selected_defences"])))
def test_a_change_of_a_defence_that_is_not_selected_changes_the_parameters_of_no_step(row: str) -> None:
    changed = with_overrides({f"defences.{row}": {"kind": "autoencoder"}})
    removed = with_overrides({})
    del removed["defences"][row]
    expected = of_all_steps(parse_params(VALUES))
    for values in (changed, removed):
        params = parse_params(values)
        assert params.defences != parse_params(VALUES).defences
        assert of_all_steps(params) == expected


def test_a_change_of_a_selected_defence_changes_the_parameters_of_its_training_alone() -> None:
    selected = {"selected_defences": ["autoencoder", "jpeg"]}
    before = of_all_steps(parse_params(with_overrides(selected)))
    transforms = [{"kind": "jpeg", "quality": 50}]
    after = of_all_steps(parse_params(with_overrides(selected | {"defences.jpeg.transforms": transforms})))
    assert [step for step in before if before[step] != after[step]] == [("train_defence", "jpeg")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "not valid YAML"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
        ("seed: 1\nseed: 2", "not valid YAML"),
    ],
)
def test_a_file_without_parameters_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_the_error_of_a_missing_file_names_the_folder_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params.yaml not found. Run the command in the folder that holds dvc\.yaml"):
        load_params(tmp_path / "params.yaml")


def leaves(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [leaf for name, child in value.items() for leaf in leaves(child, f"{prefix}.{name}" if prefix else name)]


arbitrary: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.text(max_size=5) | st.just(math.nan) | st.just(-1) | st.just([]) | st.just({"x": 1})
)


@given(key=st.sampled_from(leaves(VALUES)), value=arbitrary)
def test_any_value_of_any_field_is_an_error_that_names_it_or_is_kept_unchanged(key: str, value: Any) -> None:
    message = None
    try:
        params = parse_params(with_overrides({key: value}))
    except ParamsError as error:
        message = str(error)
    assert key.split(".")[0] in message if message else params.flat()[key] == value


def sections_in(annotation: Any) -> list[type[Section]]:
    """The classes of sections in an annotation: alone, in a union, in a list or as values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def test_every_field_and_every_section_has_a_description() -> None:
    def without_description(section: type[Section], prefix: str = "") -> list[str]:
        found = [] if vars(section).get("__doc__") else [f"{prefix}{section.__name__}"]
        for name, field in section.model_fields.items():
            nested = sections_in(field.annotation)
            for inner in nested:
                found += without_description(inner, f"{prefix}{name}.")
            is_collection = get_origin(field.annotation) in (tuple, dict)
            if (is_collection or not nested) and not field.description:
                found.append(prefix + name)
        return found

    assert without_description(Params) == []
