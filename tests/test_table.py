"""Tables of images: labels, hashed patients, split and subgroups, and the split by patient."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.dataset.table import read_columns, read_salt
from tasks.params import Params, ParamsError
from tasks.prepare import prepare
from tasks.tracking import Tracker
from tasks.validate import validate
from tests.test_readers import write_dicom

CLASSES = ["0", "yes it's 5 % é"]
N_PATIENTS, N_SLICES = 24, 3


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    for step in (workspace.acquire, workspace.validate, workspace.prepare):
        step.mkdir(parents=True)
    return workspace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of unrelated noisy images, and the table ``about.csv`` of their patients."""
    rng, rows = np.random.default_rng(0), []
    for patient in range(N_PATIENTS):
        for slice_ in range(N_SLICES):
            path = tmp_path / "scans" / f"set {patient % 3}" / f"{patient:02d} ({slice_}).png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)
            rows.append(
                {
                    "image": path.relative_to(tmp_path / "scans").as_posix(),
                    "finding": CLASSES[patient % 2],
                    "id": f"secret-{patient}",
                    "part": "test" if patient < 8 else "validation" if patient < 12 else "train",
                    "sex": "F" if patient % 4 < 2 else "",
                }
            )
    pd.DataFrame(rows).to_csv(tmp_path / "scans" / "about.csv", index=False)
    return tmp_path / "scans"


@pytest.fixture
def params_of(source: Path, params_with: Any) -> Any:
    def build(**overrides: Any) -> Params:
        keys = {
            "acquire.source": "folder",
            "acquire.folder": str(source),
            "acquire.classes": CLASSES,
            "acquire.positive_class": CLASSES[1],
            "acquire.table.file": "about.csv",
            "acquire.table.path": "image",
            "acquire.table.label": "finding",
            "acquire.table.patient": "id",
            "acquire.table.subgroups": ["sex"],
            "validate.min_side": 32,
            "prepare.image_size": 32,
            "prepare.split.test_fraction": 0.25,
            "prepare.split.validation_fraction": 0.3334,
        }
        params: Params = params_with(keys | {key.replace("__", "."): value for key, value in overrides.items()})
        return params

    return build


def change(source: Path, row: int, column: str, value: str) -> None:
    table = pd.read_csv(source / "about.csv", dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(source / "about.csv", index=False)


def run(workspace: Workspace, params: Params) -> pd.DataFrame:
    """Run the three steps; return the table of the split."""
    for step in (acquire, validate, prepare):
        step(workspace, params, Tracker())
    return pd.read_parquet(workspace.split)


def patient_of(table: pd.DataFrame) -> "pd.Series[int]":
    return table["path"].str.extract(r"/(\d+) \(")[0].astype(int)


def test_no_patient_is_on_both_sides_of_the_split_by_default(workspace: Workspace, params_of: Any) -> None:
    table = run(workspace, params_of())
    assert table.groupby(patient_of(table))["split"].nunique().max() == 1
    assert table["group"].tolist() == patient_of(table).factorize()[0].tolist()
    assert table["class"].tolist() == [CLASSES[patient % 2] for patient in patient_of(table)]
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    assert (info["strategy"], info["leakage"]["patient_in_train"], info["n_groups"]) == ("grouped", 0.0, N_PATIENTS)
    assert json.loads(workspace.leakage.read_text())["outcome"] == "exact"


def test_ids_are_hashed_and_appear_in_no_output(workspace: Workspace, params_of: Any, caplog: Any) -> None:
    table = run(workspace, params_of())
    assert table["patient"].str.fullmatch("[0-9a-f]{16}").all()
    assert table.groupby("patient").size().tolist() == [N_SLICES] * N_PATIENTS
    for path in workspace.root.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path
    assert "secret" not in caplog.text
    salt = workspace.root / ".patient_salt"
    assert salt.stat().st_mode & 0o077 == 0
    assert read_salt(salt) == read_salt(salt)


def test_another_salt_gives_other_hashes_and_the_same_split(workspace: Workspace, params_of: Any) -> None:
    first = run(workspace, params_of())
    second = run(workspace, params_of(acquire__table__salt_file="other"))
    assert not set(first["patient"]) & set(second["patient"])
    pd.testing.assert_frame_equal(first.drop(columns="patient"), second.drop(columns="patient"))


def test_subgroups_are_columns_and_an_empty_value_is_unknown(workspace: Workspace, params_of: Any) -> None:
    table = run(workspace, params_of())
    expected = np.where(patient_of(table) % 4 < 2, "F", "unknown")
    assert table["subgroup_sex"].tolist() == expected.tolist()


def test_subgroups_may_be_called_path_and_class(workspace: Workspace, source: Path, params_of: Any) -> None:
    table = pd.read_csv(source / "about.csv", dtype=str, keep_default_na=False)
    table.rename(columns={"sex": "class"}).assign(path="CT").to_csv(source / "about.csv", index=False)
    acquire(workspace, params_of(acquire__table__subgroups=["class", "path"]), Tracker())
    described = pd.read_parquet(workspace.image_table)
    assert set(described["subgroup_class"]) == {"F", "unknown"}
    assert set(described["subgroup_path"]) == {"CT"}


def test_a_row_whose_copy_would_have_the_name_of_a_folder_is_refused(
    workspace: Workspace, source: Path, params_of: Any
) -> None:
    inside = source / CLASSES[0] / "x.png" / "1.png"
    inside.parent.mkdir(parents=True)
    for path, row in ((source / "X.png", 0), (inside, 1)):
        shutil.copyfile(source / "set 0" / "00 (2).png", path)
        change(source, row, "image", path.relative_to(source).as_posix())
    with pytest.raises(ValueError, match=r"name of a folder of other copies: 'X\.png'\. Correct"):
        acquire(workspace, params_of(), Tracker())
    assert not workspace.images.exists()


def test_a_given_split_is_kept_exactly(workspace: Workspace, params_of: Any) -> None:
    table = run(workspace, params_of(acquire__table__split="part"))
    patients = patient_of(table)
    expected = np.where(patients < 8, "test", np.where(patients < 12, "validation", "train"))
    assert table["split"].tolist() == expected.tolist()
    assert json.loads(workspace.dataset_info.read_text(encoding="utf-8"))["strategy"] == "given"


def test_a_patient_in_two_splits_is_refused_with_the_files(workspace: Workspace, source: Path, params_of: Any) -> None:
    change(source, 2, "part", "train")
    with pytest.raises(ValueError, match=r"patients with images in several splits: '.*00 \(0\)\.png'") as raised:
        acquire(workspace, params_of(acquire__table__split="part"), Tracker())
    assert "secret" not in str(raised.value)
    assert not workspace.images.exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", " ", r"images without a patient id: .*01 \(0\)\.png"),
        ("part", "held out", r"images whose split is not one of .*: .*01 \(0\)\.png"),
        ("finding", "secret-no", r"images whose label is not one of acquire\.classes \['0', .*: .*01 \(0\)\.png"),
        ("image", "secret-none.png", r"files that do not exist: row 4 below the header\. The column 'image' must"),
        ("image", "../secret-.png", r"paths outside the folder: row 4 below the header"),
        ("image", "/etc/secret-.png", r"paths outside the folder: row 4 below the header"),
        ("image", "set 0/00 (0).png", r"rows with the same path: 'set 0/00 \(0\)\.png'"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_the_files(
    workspace: Workspace, source: Path, params_of: Any, column: str, value: str, message: str
) -> None:
    change(source, N_SLICES, column, value)
    with pytest.raises(ValueError, match=message) as raised:
        acquire(workspace, params_of(acquire__table__split="part"), Tracker())
    assert "secret-" not in str(raised.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1/a.png", "a.png"), ("a.png", "A.PNG"), ("é.png", "e\u0301.png"), ("1/deep/a.png", "Deep/a.png")],
    ids=["class folder in the path", "case", "accents", "case of a folder"],
)
def test_rows_with_the_same_target_file_are_refused_before_any_copy(
    workspace: Workspace, tmp_path: Path, params_of: Any, first: str, second: str
) -> None:
    source = tmp_path / "two"
    for path in (first, second, "b.png"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    (source / "about.csv").write_text(f"path,class\n{first},1\nb.png,2\n{second},1\n", encoding="utf-8")
    table = {"path": "path", "label": "class", "patient": "", "subgroups": []}
    keys = {"acquire.folder": str(source), "acquire.classes": ["1", "2"], "acquire.positive_class": "2"}
    params = params_of(**keys | {f"acquire.table.{key}": value for key, value in table.items()})
    message = (
        rf"acquire\.table\.file: 'about\.csv' has rows whose copies would have the same name .*'{first}', '{second}'\."
    )
    with pytest.raises(ValueError, match=message):
        acquire(workspace, params, Tracker())
    assert not workspace.images.exists()


@pytest.mark.parametrize(
    ("change_header", "message"),
    [
        ((",sex", ",finding"), r"has several columns of one name: columns \[2, 5\]\. .* Rename or remove columns"),
        ((",finding", ""), r"cannot be read \(.*Expected 4 fields in line 2, saw 5\)\. .*a name for every cell"),
    ],
    ids=["two columns of one name", "header shorter than the rows"],
)
def test_a_header_that_does_not_name_every_column_is_refused(
    workspace: Workspace, source: Path, params_of: Any, change_header: tuple[str, str], message: str
) -> None:
    text = (source / "about.csv").read_text(encoding="utf-8")
    (source / "about.csv").write_text(text.replace(*change_header, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"acquire\.table\.file: 'about\.csv' {message}"):
        acquire(workspace, params_of(acquire__table__subgroups=[]), Tracker())


@pytest.mark.parametrize(
    "header",
    ["", "image,id,finding,part,sex\n", "id,finding,image,part,sex\n", "finding,id,image,part,sex\n"],
    ids=["none", "label and id exchanged", "path and id exchanged", "all in wrong places"],
)
def test_a_wrong_header_prints_no_cell_of_the_table(
    workspace: Workspace, source: Path, params_of: Any, header: str
) -> None:
    _, rows = (source / "about.csv").read_text(encoding="utf-8").split("\n", 1)
    (source / "about.csv").write_text(header + rows, encoding="utf-8")
    with pytest.raises(ValueError, match=r"acquire\.table\.file: 'about\.csv' has ") as raised:
        acquire(workspace, params_of(), Tracker())
    assert "secret" not in str(raised.value)


def test_a_first_row_with_a_repeated_id_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a.png,1,secret,secret\n")
    with pytest.raises(ValueError, match=r"several columns of one name: columns \[3, 4\]") as raised:
        read_columns(tmp_path / "a.csv", "a")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("split", ["", "part"])
def test_an_id_in_two_encodings_of_accents_is_one_patient(
    workspace: Workspace, source: Path, params_of: Any, split: str
) -> None:
    for row, patient in ((0, "Zo\u00eb"), (1, "Zoe\u0308"), (2, "Zo\u00eb")):
        change(source, row, "id", patient)
    change(source, 1, "part", "train")
    if split:
        with pytest.raises(ValueError, match="patients with images in several splits"):
            acquire(workspace, params_of(acquire__table__split=split), Tracker())
        return
    acquire(workspace, params_of(), Tracker())
    assert pd.read_parquet(workspace.image_table)["patient"].nunique() == N_PATIENTS


def test_a_file_in_a_folder_that_is_a_link_out_of_the_source_is_rejected(
    workspace: Workspace, source: Path, params_of: Any, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (source / "set 0" / "00 (0).png").rename(tmp_path / "elsewhere" / "deep" / "secret.png")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    change(source, 0, "image", "link/deep/secret.png")
    acquire(workspace, params_of(), Tracker())
    rejected = json.loads(workspace.rejected.read_text(encoding="utf-8"))
    assert list(rejected) == ["link/deep/secret.png"]
    assert rejected["link/deep/secret.png"].startswith("symbolic link out of the folder. ")
    assert not list(workspace.images.rglob("secret.png"))


def test_a_dicom_file_with_the_name_of_an_image_of_another_file_is_rejected(
    workspace: Workspace, source: Path, params_of: Any
) -> None:
    for row, name in ((0, "scan"), (N_SLICES, "scan#0001"), (2 * N_SLICES, "scan#0001.dcm")):
        write_dicom(source / name)
        change(source, row, "image", name)
    acquire(workspace, params_of(), Tracker())
    rejected = json.loads(workspace.rejected.read_text(encoding="utf-8"))
    assert list(rejected) == ["scan#0001"]
    assert rejected["scan#0001"].startswith("the name ends with # and at least four digits. ")
    described = pd.read_parquet(workspace.image_table)
    assert not described["path"].str.endswith("#0001").any()


def test_missing_columns_and_a_table_outside_the_folder_are_refused(workspace: Workspace, params_of: Any) -> None:
    with pytest.raises(ValueError, match=r"has no column \['person'\]\. Its first row must have .* its 5 columns"):
        acquire(workspace, params_of(acquire__table__patient="person"), Tracker())
    with pytest.raises(ValueError, match=r"acquire\.table\.file: '\.\./about\.csv' is no file below"):
        acquire(workspace, params_of(acquire__table__file="../about.csv"), Tracker())


def test_a_parquet_table_with_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bytes(4) + b"\1\0\0\0"), pa.py_buffer(b"\xff")])
    parquet.write_table(pa.table({"path": text}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^a cannot be read \(.*must be a CSV file in UTF-8"):
        read_columns(tmp_path / "a.parquet", "a")


@pytest.mark.parametrize("damaged", ["pandas_type", "index_columns", "columns"])
def test_a_parquet_table_with_damaged_metadata_of_pandas_gives_the_same_columns(tmp_path: Path, damaged: str) -> None:
    table = pd.DataFrame({"path": ["a.png"], "class": ["left"]})
    written = pa.Table.from_pandas(table)
    metadata = written.schema.metadata[b"pandas"].replace(damaged.encode(), b"?")
    parquet.write_table(written.replace_schema_metadata({"pandas": metadata}), tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read_columns(tmp_path / "a.parquet", "a"), table, check_dtype=False)


def test_whole_numbers_of_a_parquet_table_stay_whole_beside_an_empty_cell(tmp_path: Path) -> None:
    numbers = [1, None, 2**53, 2**53 + 1]
    parquet.write_table(pa.table({"site": pa.array(numbers, pa.int64())}), tmp_path / "a.parquet")
    found = read_columns(tmp_path / "a.parquet", "a")["site"].tolist()
    assert found == ["1", "", "9007199254740992", "9007199254740993"]


def test_a_parquet_table_gives_the_same_split(workspace: Workspace, source: Path, params_of: Any) -> None:
    expected = run(workspace, params_of())
    pd.read_csv(source / "about.csv", dtype=str).to_parquet(source / "about.parquet")
    pd.testing.assert_frame_equal(run(workspace, params_of(acquire__table__file="about.parquet")), expected)


def test_columns_are_filled_from_the_named_dicom_tags_alone(
    workspace: Workspace, tmp_path: Path, params_with: Any
) -> None:
    for patient in range(12):
        for slice_ in range(2):
            path = tmp_path / "dicom" / ("a", "b")[patient % 2] / f"1.2.{patient}.{slice_}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([patient, slice_]).integers(0, 4096, (40, 40)).astype("<u2").tobytes()
            tags = {"PatientID": f"secret-{patient}", "PatientName": f"Doe^{patient}", "PatientSex": "FM"[patient % 2]}
            write_dicom(path, Rows=40, Columns=40, PixelData=pixels, **tags)
    params = params_with(
        {
            "acquire.source": "folder",
            "acquire.folder": str(tmp_path / "dicom"),
            "acquire.classes": ["a", "b"],
            "acquire.positive_class": "b",
            "acquire.table.patient": "patient",
            "acquire.table.subgroups": ["sex"],
            "acquire.table.dicom_tags": {"patient": "PatientID", "sex": "PatientSex"},
            "validate.min_side": 32,
            "validate.min_images_per_class": 6,
            "prepare.image_size": 32,
            "prepare.intensity.kind": "window",
            "prepare.split.test_fraction": 0.3334,
            "prepare.split.validation_fraction": 0.25,
        }
    )
    table = run(workspace, params)
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table["subgroup_sex"].tolist() == ["F"] * 12 + ["M"] * 12
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    intensity = info["intensity"]
    assert (intensity["low"], intensity["high"], intensity["unit"]) == (-1350, 150, "HU")
    for path in workspace.root.rglob("*"):
        assert path.is_dir() or not any(text in path.read_bytes() for text in (b"secret", b"Doe")), path


def test_a_tag_that_fills_no_column_is_refused(params_with: Any) -> None:
    with pytest.raises(
        ParamsError, match=r"acquire\.table: dicom_tags fills the columns \['sex'\], which are not used"
    ):
        params_with({"acquire.table.dicom_tags": {"sex": "PatientSex"}})
