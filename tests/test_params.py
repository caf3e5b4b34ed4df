"""params.yaml: typed, bounded, and refused before any work with the dotted key and what is allowed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.params import Params, ParamsError, Section, load_params, parse_params
from tests.conftest import ROOT, VALUES, with_overrides

ParamsWith = Callable[..., Params]


def test_the_repositorys_parameters_are_valid_and_flat_gives_every_one_as_typed() -> None:
    flat = load_params(ROOT / "params.yaml").flat()
    assert flat["attack.eps"] == [0.25, 0.5, 1, 2, 4, 8, 16]
    assert flat["validate.min_side"] == VALUES["validate"]["min_side"]
    assert flat["seed"] == 0


def test_all_eps_are_kept_unless_some_are_named() -> None:
    assert parse_params(VALUES).attack.kept_eps == (0.25, 0.5, 1, 2, 4, 8, 16)
    assert parse_params(with_overrides({"attack.keep_eps": [4, 1]})).attack.kept_eps == (1, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: Input should be greater than or equal to 0; got -1"),
        ("seed", 0.5, "seed: Input should be a valid integer"),
        ("seed", True, "seed: Input should be a valid integer"),
        ("compute.threads", 0, "compute.threads: .*greater than or equal to 1"),
        ("compute.device", "gpu", "compute.device: Input should be 'auto', 'cpu', 'cuda' or 'mps'; got 'gpu'"),
        ("acquire.classes", ["a"], "acquire.classes: .*at least 2"),
        ("acquire.classes", ["COVID", "covid"], "acquire.classes: class names must differ, not only in case"),
        ("acquire.classes", ["COVID", "../x"], r"acquire.classes: '\.\./x' can't be a folder's name"),
        (
            "acquire.positive_class",
            "flu",
            r"acquire: positive_class 'flu' must be one of classes \['non-COVID', 'COVID'\]",
        ),
        ("validate.min_side", 5000, "validate: min_side 5000 must not be above max_side 4096"),
        ("validate.max_imbalance", math.inf, "validate.max_imbalance: .*finite"),
        ("prepare.image_size", 100, "prepare.image_size: .*multiple of 32"),
        ("prepare.split.strategy", "random", "prepare.split.strategy: .*'stratified' or 'grouped'"),
        ("prepare.split.test_fraction", 1.0, "prepare.split.test_fraction: .*less than 1"),
        ("train_classifier.epochs", 0, "train_classifier.epochs: .*greater than or equal to 1"),
        ("train_classifier.learning_rate", "1e-4", "train_classifier.learning_rate: .*valid number; got '1e-4'"),
        ("train_classifier.pretrained", True, "train_classifier: pretrained weights exist for torchvision"),
        ("train_autoencoder.noises", [], "train_autoencoder.noises: .*at least 1"),
        (
            "train_autoencoder.noises",
            [{"kind": "fog", "strength": 1.0}],
            r"train_autoencoder.noises\[0\].kind: .*; got 'fog'",
        ),
        ("attack.eps", [], "attack.eps: .*at least 1"),
        ("attack.eps", [4, 2], "attack: eps must rise without repeats"),
        ("attack.eps", [2, 2], "attack: eps must rise without repeats"),
        ("attack.eps", [0], r"attack.eps\[0\]: .*greater than 0"),
        ("attack.eps", [1, math.nan], r"attack.eps\[1\]"),
        ("attack.attacks", ["fgsm", "fgsm"], "attack: attacks must not repeat"),
        ("attack.sweep.n_steps", 9, r"attack: sweep.n_steps 9 must not be below pgd.n_steps 10"),
        ("attack.norm", "l2", "attack: suite.n_queries must be 0 with norm l2, not 25"),
        ("attack.suite.max_label_images", 1, "attack.suite.max_label_images: 1 images can't stand for 2 classes"),
        ("attack.keep_eps", [3], r"attack: keep_eps \[3.0\] must be among eps"),
        ("attack.keep_eps", [2], r"analyze.eps 1 must be among the eps whose images are kept \[2.0\]"),
        ("attack.max_images", 1, "attack.max_images: 1 images can't stand for 2 classes"),
        ("analyze.eps", 3, r"analyze.eps 3 must be among the eps whose images are kept \[0.25, 0.5"),
        ("analyze.n_resamples", 10, "analyze.n_resamples: .*greater than or equal to 100"),
        ("analyze.false_positive_rate", 0, "analyze.false_positive_rate: .*greater than 0"),
        ("analyze.evasion.eps", [1, 3], r"analyze.evasion.eps \[3.0\] must be among the eps whose images are kept"),
        ("analyze.evasion.max_images", 1, "analyze.evasion.max_images: 1 images can't stand for 2 classes"),
        ("attack.epsilon", [1], "attack.epsilon: unknown key"),
        ("benchmark", [], "benchmark: .*at least 1"),
        ("benchmark", ["autoencoder", "jpg"], r"benchmark: \['jpg'\] must be among .*'retrained_autoencoder'"),
        ("benchmark", ["autoencoder", "autoencoder"], "benchmark must not repeat a name"),
        ("defences", {"undefended": {"kind": "autoencoder"}}, "defences.undefended: .*choose another"),
        ("defences", {"auto/encoder": {"kind": "autoencoder"}}, "defences.auto/encoder"),
        ("defences.autoencoder.kind", "magic", "defences.autoencoder: .*'autoencoder', 'denoising_autoencoder'"),
        ("defences.autoencoder.epochs", 3, "defences.autoencoder.epochs: unknown key"),
        (
            "defences.retrained_autoencoder.adversary.pgd.n_steps",
            0,
            r"defences.retrained_autoencoder.adversary.pgd.n_steps: .*greater",
        ),
        (
            "defences.retrained_autoencoder.adversary.eps",
            [4, 2],
            "defences.retrained_autoencoder.adversary: eps must be a smallest and",
        ),
        ("defences.unet_autoencoder", {"kind": "denoising_autoencoder"}, "defences.unet_autoencoder.training: missing"),
        ("defences.unet_autoencoder.architecture", "vit", "defences.unet_autoencoder.architecture: .*'residual_unet'"),
        ("defences.trades.adversary.pgd.n_restarts", 0, "defences.trades: adversary.pgd.n_restarts must be 1"),
        (
            "defences.adversarial_training.clean_weight",
            1.0,
            "defences.adversarial_training.clean_weight: .*less than 1",
        ),
        ("defences.jpeg.steps", [], "defences.jpeg.steps: .*at least 1"),
        ("defences.jpeg.steps", [{"method": "jpeg", "quality": 0}], r"defences.jpeg.steps\[0\].quality: .*greater"),
        ("defences.jpeg.steps", [{"method": "jpeg"}], r"defences.jpeg.steps\[0\].quality: missing"),
        ("defences.jpeg.steps", [{"method": "blur"}], r"defences.jpeg.steps\[0\]: .*'jpeg', 'bit_depth'"),
        ("defences.jpeg.n_draws", 2, "defences.jpeg: n_draws must be 1, not 2: no step draws at random"),
        ("benchmark", ["jpeg"], r"one of \['jpeg'\] must be of the kind 'autoencoder'"),
        ("attack.pgd", {}, "attack.pgd.n_steps: missing"),
    ],
)
def test_an_impossible_value_is_refused_with_its_dotted_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_params(with_overrides({key: value}))


def test_all_problems_come_in_one_error() -> None:
    with pytest.raises(ParamsError) as error:
        parse_params(with_overrides({"seed": -1, "attack.eps": [0], "nonsense": 1}))
    assert str(error.value).count("\n") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "not valid YAML"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
        ("seed: 1\nseed: 2", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_parameters_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"run from the folder that holds dvc\.yaml"):
        load_params(tmp_path / "params.yaml")


def leaves(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [leaf for name, child in value.items() for leaf in leaves(child, f"{prefix}.{name}" if prefix else name)]


junk = (
    st.none() | st.booleans() | st.text(max_size=5) | st.just(math.nan) | st.just(-1) | st.just([]) | st.just({"x": 1})
)


@given(key=st.sampled_from(leaves(VALUES)), value=junk)
def test_junk_in_any_field_is_either_refused_by_name_or_kept_as_it_is(key: str, value: Any) -> None:
    refusal = None
    try:
        params = parse_params(with_overrides({key: value}))
    except ParamsError as error:
        refusal = str(error)
    assert key.split(".")[0] in refusal if refusal else params.flat()[key] == value


def test_every_field_says_what_it_means() -> None:
    def silent(section: type[Section], prefix: str = "") -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                found += silent(inner, f"{prefix}{name}.")
            elif not field.description:
                found.append(prefix + name)
        return found

    assert silent(Params) == []
