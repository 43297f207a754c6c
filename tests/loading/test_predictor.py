"""A trained model reads new data as the training data were read."""

import csv
import gzip
import json
from pathlib import Path

import commands
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dlblocks
from dlblocks import _npz
from dlblocks.cli import main
from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import (
    ArrayDataModule,
    DigitsDataModule,
    FoldedDataModule,
    ImageFolderDataModule,
    TabularDataModule,
    encoders,
)
from dlblocks.ensembles import AdaBoost, Bagging, GradientBoosting, Voting
from dlblocks.loading import Predictor, load
from dlblocks.models import CNNClassifier, MLPClassifier, MLPRegressor, Model, VotingEnsemble
from dlblocks.nets import Preprocess

N = 240
RNG = np.random.default_rng(7)
CPU = {"device": "cpu", "progress_bar": False}


def people(n=N, seed=0):
    """Numbers, two kinds of categories, dates and missing cells."""
    rng = np.random.default_rng(seed)
    age, city = rng.normal(40, 12, n).round(1), rng.choice(["Bonn", "Oslo", "Rome"], n)
    frame = pd.DataFrame(
        {
            "id": [f"c{i:04d}" for i in range(n)],
            "age": age,
            "city": city,
            "since": pd.date_range("2019-01-30", periods=n, freq="37h").strftime("%d.%m.%Y"),
            "zip": rng.choice([f"{i:05d}" for i in range(60)], n),
            "income": (rng.lognormal(8, 1, n)).round(2),
            "churned": np.where(rng.random(n) < 1 / (1 + np.exp((age - 40) / 8)), "yes", "no"),
        }
    )
    frame.loc[::17, "income"] = np.nan
    return frame


# How a German spreadsheet writes it.
GERMAN = {"sep": ";", "decimal": ","}
SETTINGS = {
    "target": "churned", "drop": ["id"], "dates": {"since": "%d.%m.%Y"}, "counts": ["zip"],
    "missing": "impute", "batch_size": 32,
}  # fmt: skip


def write(frame, path, **settings):
    frame.to_csv(path, index=False, **{**GERMAN, **settings})
    return path


def run(make_model, data, folder, **settings):
    return cross_validate(
        make_model, data, num_folds=2, trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir=folder, progress_bar=False, figures=False, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("loading")


@pytest.fixture(scope="module")
def churn(place):
    """A cross-validation of a table, and the table."""
    path = write(people(), place / "churn.csv")
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    result = run(lambda: MLPClassifier(data.in_features, 2, hidden=[8]), data, place / "churn")
    return result, people(), path


class Own(pl.LightningModule):
    """Somebody else's module."""

    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, width)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0]).softmax(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfDictionaries(Own):
    """It takes dictionaries, which nobody else can make."""

    def _pair(self, batch):
        return [batch["x"].flatten(1), batch["y"]]

    def training_step(self, batch, batch_idx):
        return super().training_step(self._pair(batch), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step(self._pair(batch), batch_idx)

    def predict_step(self, batch, batch_idx):
        return super().predict_step([batch["x"].flatten(1)], batch_idx)


class Samples(Dataset):
    classes = ("ant", "bee", "cow")

    def __init__(self):
        self.x = np.random.default_rng(0).random((90, 2, 2), dtype=np.float32)
        self.targets = [i % 3 for i in range(90)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.targets[i]}


def as_batch(texts):
    """What is given to `predict` is a list of texts here."""
    return {"x": torch.tensor([[float(x) for x in text.split()] for text in texts])}


@pytest.fixture(scope="module")
def own(place):
    """A foreign module on one of our tables."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(3, 2, (90, 4)), columns=list("abcd"))
    frame["kind"] = np.array(["ant", "bee", "cow"])[np.arange(90) % 3]
    path = place / "own.csv"
    frame.to_csv(path, index=False)
    data = TabularDataModule(path, target="kind", batch_size=16)
    return run(Own, data, place / "own", monitor="val/loss"), frame


@pytest.fixture(scope="module")
def dictionaries(place):
    data = FoldedDataModule(DataLoader(Samples(), batch_size=16))
    return run(OfDictionaries, data, place / "dictionaries", monitor="val/loss")


@pytest.fixture(scope="module")
def photos(place):
    rng = np.random.default_rng(2)
    for i in range(48):
        path = place / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mode, shape = (("RGB", (9, 12, 3)), ("L", (14, 9)), ("RGBA", (8, 8, 4)))[i % 3]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode=mode).save(path)
    data = ImageFolderDataModule(
        place / "photos", size=(6, 8), background=10, batch_size=8, test_fraction=0.1
    )
    return run(lambda: CNNClassifier(3, 2, channels=[4]), data, place / "images"), data


@pytest.fixture(scope="module")
def arrays(place):
    rng = np.random.default_rng(3)
    inputs = rng.normal(5, 3, (80, 6))
    data = ArrayDataModule(inputs, inputs[:, 0] * 2 + 1, batch_size=16)
    return run(lambda: MLPRegressor(6, hidden=[8]), data, place / "arrays"), inputs


def fold(result, number):
    """The checkpoint of a fold, and the predictions of its samples by it."""
    return result.run_dir / result.folds[number]["checkpoint"], result.oof[
        result.oof.fold == number
    ]


# The same numbers as in training


SCRIPT = """
import json, sys
import numpy as np
sys.path[:0] = {tests}
from dlblocks import load
import test_predictor
for job in json.load(open("jobs.json")):
    module = getattr(test_predictor, job["module"] or "", None)
    preprocess = test_predictor.as_batch if job["module"] == "OfDictionaries" else None
    predictor = load(job["model"], module=module, preprocess=preprocess)
    data = job["data"]
    table = predictor.predict(data, device="cpu", progress_bar=False)
    np.save(job["out"], table.prediction)
"""


def test_a_new_process_predicts_to_the_bit(
    churn, own, dictionaries, photos, arrays, place, tmp_path
):
    """Raw rows of a fold, through its checkpoint, are its out-of-fold predictions."""
    result, frame, _ = churn
    jobs, expected = [], []

    def job(result, number, make, module=None):
        path, rows = fold(result, number)
        out = f"{len(jobs)}.npy"
        jobs.append({"model": str(path), "data": make(rows.index), "out": out, "module": module})
        expected.append(rows.prediction)

    job(result, 0, lambda i: str(write(frame.iloc[i].drop(columns="churned"), tmp_path / "a.csv")))
    # Other columns, in another order.
    job(result, 1, lambda i: str(write(frame.iloc[i, ::-1].assign(new=1), tmp_path / "b.csv")))

    def of_images(i):
        below = place / "photos"
        files = sorted(map(str, below.glob("*/*.png")))
        return [files[k] for k in i]

    job(photos[0], 0, of_images)

    def of_arrays(i):
        np.save("c.npy", arrays[1][i])
        return "c.npy"

    job(arrays[0], 1, of_arrays)

    def of_own(i):
        own[1].iloc[i].to_csv("d.csv", index=False)
        return "d.csv"

    job(own[0], 0, of_own, "Own")

    def of_texts(i):
        return [" ".join(repr(float(x)) for x in Samples().x[k].flatten()) for k in i]

    job(dictionaries, 1, of_texts, "OfDictionaries")
    Path("jobs.json").write_text(json.dumps(jobs))
    here = Path(__file__).parent
    tests = [str(here), str(here.parent)]
    commands.run("python", "-W", "ignore", "-c", SCRIPT.format(tests=tests))
    for number, rows in enumerate(expected):
        found = np.load(f"{number}.npy")
        assert found.dtype == rows.dtype and found.shape == rows.shape
        np.testing.assert_array_equal(found, rows, err_msg=str(jobs[number]))


def test_the_fold_average_equals_its_own_predictions(churn):
    result, frame, path = churn
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    average = result.ensemble()
    with torch.no_grad():
        expected = average.prediction(average(data.source.inputs[:32])).numpy()
    table = load(result.run_dir).predict(frame[:32], **CPU)
    np.testing.assert_array_equal(table.prediction, expected)
    # The spread of the two members.
    with torch.no_grad():
        each = [m(data.source.inputs[:32]).softmax(1) for m in average.net.members]
    np.testing.assert_allclose(table.std, torch.stack(each).std(0, correction=0), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_chunks_change_nothing(churn, rows, monkeypatch):
    result, frame, path = churn
    predictor = load(result.run_dir)
    expected = predictor.predict(path, batch_size=8, **CPU)
    monkeypatch.setattr(encoders, "CSV_ROWS", rows)
    for data in (path, frame):
        found = predictor.predict(data, batch_size=8, **CPU)
        np.testing.assert_allclose(found.prediction, expected.prediction, rtol=1e-6)
        assert (found.index == np.arange(N)).all()


def test_batches_of_other_sizes_agree(churn):
    predictor = load(churn[0].run_dir)
    tables = [predictor.predict(churn[2], batch_size=n, **CPU).prediction for n in (1, 32, N)]
    for table in tables:
        np.testing.assert_allclose(table, tables[0], atol=1e-6)


# What is given


def test_ways_to_give_a_table(churn, tmp_path):
    result, frame, path = churn
    predictor = load(result.run_dir)
    expected = predictor.predict(path, **CPU)
    assert expected.to_pandas().columns.tolist() == [
        "index", "prediction", "probability_no", "probability_yes", "std_no", "std_yes",
    ]  # fmt: skip
    assert set(expected.to_pandas()["prediction"]) <= {"no", "yes"}
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    with gzip.open(tmp_path / "new.csv.gz", "wt") as file:
        file.write(path.read_text())
    halves = tmp_path / "halves"
    halves.mkdir()
    write(frame[:100], halves / "1.csv")
    write(frame[100:], halves / "2.csv")
    for data in (frame, rows, str(path), tmp_path / "new.csv.gz", halves):
        table = predictor.predict(data, **CPU)
        np.testing.assert_allclose(table.prediction, expected.prediction, atol=1e-6)
    named = predictor.predict(path, id_column="id", **CPU).to_pandas()
    assert named.columns[0] == "id" and named["id"].tolist() == frame["id"].tolist()
    indexed = predictor.predict(frame.set_index("id"), **CPU).to_pandas()
    pd.testing.assert_frame_equal(indexed, named)


def test_rows_of_the_table_can_be_chosen(churn):
    table = load(churn[0].run_dir).predict(churn[2], id_column="id", **CPU)
    some = table[table.prediction[:, 1] > 0.5]
    assert 0 < len(some) < N
    assert set(some.to_pandas()["prediction"]) == {"yes"}
    assert some.to_pandas()["id"].tolist() == churn[1]["id"][some.index].tolist()


def test_ways_to_give_arrays(arrays, tmp_path):
    result, inputs = arrays
    predictor = load(result.run_dir)
    expected = predictor.predict(inputs, **CPU)
    assert expected.prediction.shape == (80,) == expected.std.shape
    assert expected.to_pandas().columns.tolist() == ["index", "prediction", "std"]
    np.save("inputs.npy", inputs)
    tensor = torch.from_numpy(inputs)
    loader = DataLoader(TensorDataset(tensor.float(), torch.zeros(80)), batch_size=16)
    ways = [
        tensor,
        inputs.astype(np.float32),
        inputs.tolist(),
        "inputs.npy",
        loader,
        loader.dataset,
    ]
    for data in ways:
        np.testing.assert_array_equal(
            predictor.predict(data, **CPU).prediction, expected.prediction
        )


def test_ways_to_give_images(photos, place):
    result, data = photos
    predictor = load(result.run_dir)
    folder = place / "photos"
    files = sorted(map(str, folder.glob("*/*.png")))
    table = predictor.predict(folder, **CPU)
    frame = table.to_pandas()
    assert frame["file"].tolist() == [Path(f).relative_to(folder).as_posix() for f in files]
    assert set(frame["prediction"]) <= {"cat", "dog"}
    listed = predictor.predict(files, **CPU)
    array = predictor.predict(data.source.inputs, **CPU)
    single = predictor.predict(files[3], **CPU)
    for other in (listed, array):
        np.testing.assert_array_equal(other.prediction, table.prediction)
    assert single.to_pandas()["file"].tolist() == [files[3]]
    np.testing.assert_allclose(single.prediction, table.prediction[3:4], atol=1e-6)


def test_digits_know_how_to_read_a_file(make_trainer, tmp_path):
    data = DigitsDataModule()
    trainer = make_trainer()
    model = MLPClassifier(64, 10, hidden=[])
    trainer.fit(model, datamodule=data)
    model.save("digits.pt")
    images = data.source.inputs[:3]
    Image.fromarray(images[0, 0].numpy()).save("digit.png")
    predictor = load("digits.pt")
    expected = predictor.predict(images[:1], **CPU)
    found = predictor.predict("digit.png", **CPU)
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    # Names that are numbers are numbers.
    assert found.to_pandas()["prediction"].dtype.kind == "i"
    with pytest.raises(ValueError, match="float32, and the model was trained on uint8"):
        predictor.predict(images.float() / 255, **CPU)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\).*for one sample data\[None\]"):
        predictor.predict(images[0], **CPU)
    with pytest.raises(ValueError, match=r"trained on samples of shape \(1, 8, 8\)"):
        predictor.predict(images[:, :, :7], **CPU)


# What does not fit


def changed(**columns):
    return people(40, seed=1).assign(**columns)


def cell(column, row, value):
    frame = people(40, seed=1).astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (people(9).drop(columns="age"), "no column 'age', which the model was trained on"),
        (people(9).rename(columns={"age": "Age"}), "no column 'age'.*did you mean 'Age'"),
        (people(9).drop(columns=["age", "zip"]), "no column 'age', 'zip'"),
        (cell("age", 6, "forty"), "column 'age' has 'forty' in row 7, which is not a number"),
        (
            cell("age", 6, "1e999"),
            "column 'age' (is infinite|has '1e999'.*not a number)",
        ),  # 2nd: pandas 2
        (changed(age="x"), r"column 'age' has 'x' in row 1, which is not a number \(40 such"),
        (cell("city", 3, "Rom"), "column 'city' has the category 'Rom' in row 4.*mean 'Rome'"),
        (changed(city=7), "column 'city' has the category '7' in row 1"),
        (cell("since", 2, "2020-01-31"), "column 'since' has '2020-01-31' in row 3.*not a date"),
        (changed(since=3.5), "column 'since' has '3.5' in row 1"),
    ],
)
@pytest.mark.parametrize("from_file", [True, False])
def test_a_table_that_does_not_fit_is_refused_by_name(frame, said, from_file, churn, tmp_path):
    data = write(frame, tmp_path / "new.csv", decimal=",") if from_file else frame
    with pytest.raises(ValueError, match=said) as error:
        load(churn[0].run_dir).predict(data, **CPU)
    assert str(error.value).startswith(str(data) if from_file else "data")


def test_rows_are_counted_over_chunks(churn, monkeypatch):
    monkeypatch.setattr(encoders, "CSV_ROWS", 8)
    with pytest.raises(ValueError, match="'forty' in row 31"):
        load(churn[0].run_dir).predict(cell("age", 30, "forty"), batch_size=8, **CPU)


def test_further_columns_are_ignored_with_a_message(churn, caplog):
    predictor = load(churn[0].run_dir)
    with caplog.at_level("INFO"):
        predictor.predict(churn[1], **CPU)
        assert "ignores" not in caplog.text  # the target and what was dropped are known
        predictor.predict(churn[1].assign(colour="red"), **CPU)
    assert "the model does not know, and ignores, 'colour'" in caplog.text


def test_missing_cells_and_new_categories_become_what_training_says(churn):
    """Cells that are missing where training had none become the median all the same."""
    result, frame, _ = churn
    path, _ = fold(result, 0)
    predictor = load(path)
    (rows,) = (result.oof[result.oof.fold == 1].index,)  # that trained, with the selection part
    gone = frame[:5].astype(object)
    gone[["age", "city"]] = None
    filled = frame[:5].copy()
    known = predictor.model.preprocess.fill
    names = [f for c in predictor.encoder.columns for f in c.feature_names]
    assert frame["age"].iloc[rows].min() < known[names.index("age")] < frame["age"].iloc[rows].max()
    filled["age"] = known[names.index("age")].item()
    cities = [name for name in names if name.startswith("city=")]
    filled["city"] = max(cities, key=lambda name: known[names.index(name)])[5:]
    expected = predictor.predict(filled, **CPU).prediction
    np.testing.assert_allclose(predictor.predict(gone, **CPU).prediction, expected, rtol=1e-5)
    new = filled.assign(city="Rom")
    found = predictor.predict(new, unseen="missing", **CPU).prediction
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A city that no row has: its share is 0, as of one that no training row has.
    inputs = predictor.encoder.encode(frame[:5].assign(zip="new"))
    prepared = predictor.model.preprocess(inputs)
    at = names.index("zip")
    scale, shift = predictor.model.preprocess.scale[at], predictor.model.preprocess.shift[at]
    np.testing.assert_allclose(prepared[:, at], np.full(5, shift), rtol=1e-6)
    assert scale > 0


def test_without_imputation_missing_cells_are_refused(make_trainer):
    frame = people().drop(columns=["income", "zip", "id"])
    data = TabularDataModule(frame, "churned", dates={"since": "%d.%m.%Y"})
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    for column in ("age", "city", "since"):
        gone = frame[:5].astype(object)
        gone.loc[3, column] = None
        with pytest.raises(ValueError, match=f"column '{column}' has no value in row 4"):
            predictor.predict(gone, **CPU)
    with pytest.raises(ValueError, match="unseen='missing' needs a model that was trained with"):
        predictor.predict(frame[:5].assign(city="Rom"), unseen="missing", **CPU)


def test_embeddings_know_unknown_categories(make_trainer):
    frame = people().drop(columns=["income", "id", "since"])
    data = TabularDataModule(frame, "churned", embed=["zip"])
    model = MLPClassifier(data.in_features, 2, hidden=[], embeddings=data.embeddings)
    make_trainer().fit(model, datamodule=data)
    inputs = load(model).encoder.encode(frame[:4].assign(zip=["new", "00001", "00002", "new"]))
    prepared = model.preprocess(inputs)
    at = next(iter(data.embeddings))
    assert prepared[:, at].tolist() == [0, 2, 3, 0]


def test_dates_of_another_format_are_refused(make_trainer):
    frame = people().drop(columns=["income", "zip", "id"])
    frame["since"] = pd.date_range("2019-01-30", periods=N).strftime("%Y-%m-%d")
    data = TabularDataModule(frame, "churned", dates=["since"])
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    for value in ("03/04/2020", "31.12.2020", "12:30"):
        with pytest.raises(ValueError, match=f"'{value}' in row 1, a date of another format"):
            predictor.predict(frame[:3].assign(since=value), **CPU)
    odd = predictor.predict(frame[:3].assign(since="2030-12-31"), **CPU)
    assert len(odd) == 3


def test_files_without_samples(churn, photos, tmp_path):
    predictor = load(churn[0].run_dir)
    header = people(1).columns
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text(";".join(header) + "\n")
    (tmp_path / "none").mkdir()
    for name, kind, said in (
        ("empty.csv", ValueError, "empty.csv has no rows: the file is empty"),
        ("header.csv", ValueError, "header.csv has no rows; expected a header"),
        ("none", FileNotFoundError, "none' has no CSV file"),
        ("nothing.csv", FileNotFoundError, "nothing.csv' is neither a file nor a folder"),
    ):
        with pytest.raises(kind, match=said):
            predictor.predict(tmp_path / name, **CPU)
    with pytest.raises(ValueError, match="data has no rows"):
        predictor.predict(people(3)[:0], **CPU)
    images = load(photos[0].run_dir)
    with pytest.raises(FileNotFoundError, match="none' has no image"):
        images.predict(tmp_path / "none", **CPU)
    with pytest.raises(FileNotFoundError, match=r"no.png' is neither a file nor a folder"):
        images.predict([tmp_path / "no.png"], **CPU)
    with pytest.raises(ValueError, match="empty list"):
        images.predict([], **CPU)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png cannot be decoded as an image"):
        images.predict([tmp_path / "broken.png"], **CPU)


def test_data_of_another_kind_are_refused(churn, arrays, photos):
    with pytest.raises(TypeError, match="column 'city' of the training table is not a number"):
        load(churn[0].run_dir).predict(np.zeros((3, 5)), **CPU)
    with pytest.raises(TypeError, match="trained on a table; give a CSV file"):
        load(churn[0].run_dir).predict(3, **CPU)
    predictor = load(arrays[0].run_dir)
    with pytest.raises(TypeError, match=r"is not a .npy file"):
        predictor.predict("new.csv", **CPU)
    with pytest.raises(ValueError, match=r"shape \(3, 5\).*samples of shape \(6,\)"):
        predictor.predict(np.zeros((3, 5)), **CPU)
    with pytest.raises(ValueError, match="not finite in row 2"):
        predictor.predict(np.where(np.arange(3)[:, None] == 2, np.nan, np.ones((3, 6))), **CPU)
    with pytest.raises(TypeError, match=r"Trainer.predict"):
        predictor.predict(DigitsDataModule(), **CPU)


# How files are read


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["no", "yes"], "str"),
        ([3, 7], "int"),
        ([True, False], "bool"),
        (["01", "02"], "str"),
    ],
)
def test_classes_come_by_name(labels, kind, make_trainer, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "y": [labels[i % 2] for i in range(60)]})
    data = TabularDataModule(frame, "y")
    model = MLPClassifier(1, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    model.save("model.pt")
    table = load("model.pt").predict(frame[["x"]], **CPU)
    found = table.to_pandas()["prediction"]
    assert {type(value).__name__.removesuffix("_") for value in found.tolist()} == {kind}
    assert set(found) <= set(labels)
    assert (found == np.array(sorted(labels))[table.prediction.argmax(1)]).all()
    table.to_csv("predictions.csv")
    with open("predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == [str(value) for value in found]
    assert float(rows[5][f"probability_{sorted(labels)[1]}"]) == pytest.approx(
        table.prediction[5, 1]
    )


def test_thousands_and_decimal_commas(make_trainer, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 5000, 80).round(2)
    texts = [f"{value:,.2f}".translate(str.maketrans(",.", ".,")) for value in x]
    frame = pd.DataFrame({"x": texts, "n": np.arange(80) % 7, "y": np.where(x > 0, "up", "down")})
    path = write(frame, tmp_path / "train.csv", decimal=".")
    data = TabularDataModule(path, "y", **GERMAN, read_args={"thousands": "."})
    np.testing.assert_allclose(data.source.inputs[:, 0], x, rtol=1e-6)
    model = MLPClassifier(2, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    inputs = torch.cat([chunk for chunk, _ in predictor.encoder.read(path, 8).chunks])
    assert torch.equal(inputs, data.source.inputs)
    (tmp_path / "new.csv").write_text("x;n\n1.500;3\n2,5;4\n")
    (chunk,) = [chunk for chunk, _ in predictor.encoder.read(tmp_path / "new.csv", 8).chunks]
    assert chunk[:, 0].tolist() == [1500, 2.5]
    (tmp_path / "new.csv").write_text("x,n\n1500,3\n")
    with pytest.raises(ValueError, match=r"new.csv has a single column.*set sep=','"):
        predictor.predict(tmp_path / "new.csv", **CPU)


@pytest.mark.parametrize("names", [None, ["a", "b", "kind"]])
def test_files_without_a_header(names, make_trainer, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(3, 1, 60)})
    frame["kind"] = ["no", "yes"] * 30
    frame.to_csv("train.csv", index=False, header=False)
    read_args = {"header": None, **({"names": names} if names else {})}
    data = TabularDataModule("train.csv", names[-1] if names else "2", read_args=read_args)
    model = MLPClassifier(2, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    expected = predictor.predict("train.csv", **CPU).prediction
    frame[["a", "b"]].to_csv("new.csv", index=False, header=False)
    np.testing.assert_array_equal(predictor.predict("new.csv", **CPU).prediction, expected)
    frame[["a"]].to_csv("one.csv", index=False, header=False)
    with pytest.raises(ValueError, match=r"no column '(1|b)'.*Files without a header"):
        predictor.predict("one.csv", **CPU)


def test_a_missing_first_column_of_a_file_without_header_is_no_shift(make_trainer):
    """The target comes first: without it all columns are one place to the left."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"y": ["no", "yes"] * 30, "a": rng.normal(size=60), "b": range(60)})
    frame.to_csv("train.csv", index=False, header=False)
    names = ["y", "a", "b"]
    args = {"header": None, "names": names}
    data = TabularDataModule("train.csv", "y", missing="impute", read_args=args)
    model = MLPClassifier(2, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    frame[["a", "b"]].to_csv("new.csv", index=False, header=False)
    with pytest.raises(ValueError, match=r"no column 'b'.*Files without a header"):
        load(model).predict("new.csv", **CPU)


@pytest.mark.parametrize("names", [["01", "02"], ["1", "x"], ["True", "no"], ["é", "b c"]])
def test_categories_are_texts_in_files_too(names, make_trainer):
    """Of a file that has some of them only, pandas would make numbers."""
    frame = pd.DataFrame({"x": RNG.normal(size=60), "kind": names * 30, "y": ["a", "b", "b"] * 20})
    frame.to_csv("train.csv", index=False)
    data = TabularDataModule("train.csv", "y", categorical=["kind"])
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    for some in (frame, frame[::2], frame[1::2]):
        some.to_csv("new.csv", index=False)
        (chunk,) = [chunk for chunk, _ in predictor.encoder.read("new.csv", 8).chunks]
        assert torch.equal(chunk, data.source.inputs[some.index.tolist()])
    frame.assign(kind=frame["kind"].replace({"1": "01", "01": "1"})).to_csv("new.csv", index=False)
    if names[0] in ("1", "01"):
        with pytest.raises(ValueError, match="column 'kind' has the category"):
            predictor.predict("new.csv", **CPU)


def test_row_names_as_r_writes_them(make_trainer, tmp_path):
    frame = people().drop(columns=["income", "zip", "id", "since"])
    lines = frame.to_csv(index=True, index_label=False)
    (tmp_path / "r.csv").write_text(lines)
    data = TabularDataModule(tmp_path / "r.csv", "churned")
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    found = torch.cat([chunk for chunk, _ in predictor.encoder.read(tmp_path / "r.csv", 8).chunks])
    assert torch.equal(found, data.source.inputs)


def test_reading_arguments_that_are_code_are_said(make_trainer):
    frame = people().drop(columns=["income", "zip", "id", "since"])
    frame.to_csv("a.csv", index=False)
    read_args = {"skiprows": lambda row: row == 3}
    data = TabularDataModule("a.csv", "churned", read_args=read_args)
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    model.save("model.pt")
    predictor = load("model.pt")
    with pytest.raises(ValueError, match="read_args of the training are not plain values"):
        predictor.predict("a.csv", **CPU)
    assert len(predictor.predict(frame, **CPU)) == N


def test_times_in_milliseconds_stay_float64(make_trainer):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"t": 1.7e12 + rng.integers(0, 10**6, 80).astype(float)})
    frame["y"] = np.where(frame["t"] > frame["t"].median(), "late", "early")
    frame.to_csv("t.csv", index=False)
    data = TabularDataModule("t.csv", "y")
    model = MLPClassifier(1, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    encoder = load(model).encoder
    single = encoder.encode(frame[:1])
    assert single.dtype == torch.float64 == data.source.inputs.dtype
    assert torch.equal(encoder.encode(frame), data.source.inputs)


# What can be opened


def test_run_folders(churn, place, tmp_path):
    result, frame, path = churn
    assert isinstance(load(result.run_dir).model, VotingEnsemble)
    assert isinstance(load(result.run_dir / "fold-1").model, MLPClassifier)
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    copied = tmp_path / "churn"
    again = run(lambda: MLPClassifier(data.in_features, 2, hidden=[8]), data, copied)
    model = again.refit()
    predictor = load(copied)
    assert isinstance(predictor.model, MLPClassifier)
    with torch.no_grad():
        expected = model(data.source.inputs[:32]).softmax(1).numpy()
    np.testing.assert_array_equal(predictor.predict(frame[:32], **CPU).prediction, expected)
    # The average all the same.
    assert isinstance(load(again.ensemble()).model, VotingEnsemble)
    with pytest.raises(FileNotFoundError, match=r"has no model: there is neither refit/model.ckpt"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        load(tmp_path / "nothing")


def test_nested_runs(churn, tmp_path):
    path = churn[2]
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    result = nested_cross_validate(
        lambda lr: MLPClassifier(data.in_features, 2, hidden=[4], lr=lr), data, {"lr": [0.1, 0.01]},
        num_folds=2, inner_folds=2, trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir=tmp_path / "run", progress_bar=False, figures=False,
    )  # fmt: skip
    assert len(load(tmp_path / "run").model.net.members) == 2
    model = result.refit()
    loaded = load(tmp_path / "run")
    assert isinstance(loaded.model, MLPClassifier)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert len(loaded.predict(path, **CPU)) == N


ENSEMBLES = {
    "bagging": lambda data, n, folder: Bagging(
        lambda: MLPClassifier(n, 2, hidden=[4]), data, num_members=2, figures=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False, run_dir=folder,
    ),
    "gradient boosting": lambda data, n, folder: GradientBoosting(
        lambda: MLPRegressor(n, 2, hidden=[4]), data, num_stages=2, progress_bar=False,
        run_dir=folder, trainer={"accelerator": "cpu"},
    ),
    "adaboost": lambda data, n, folder: AdaBoost(
        lambda: MLPClassifier(n, 2, hidden=[16], lr=0.05), data, num_stages=2,
        progress_bar=False, run_dir=folder, trainer={"accelerator": "cpu", "max_epochs": 20},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_ensembles(kind, churn, tmp_path):
    _, frame, path = churn
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    result = ENSEMBLES[kind](data, data.in_features, tmp_path / "run").fit()
    with torch.no_grad():
        outputs = result.model(data.source.inputs[:32])
        expected = result.model.prediction(outputs).numpy()
    predictor = load(tmp_path / "run")
    table = predictor.predict(frame[:32], **CPU)
    np.testing.assert_array_equal(table.prediction, expected)
    assert ("std" in table) == (kind == "bagging")
    predictor.save("one.pt")
    again = load("one.pt").predict(path, **CPU)
    np.testing.assert_array_equal(again[:32].prediction, expected)
    assert again.class_names == ["no", "yes"]


def test_voting_of_models_of_one_table(churn):
    result, frame, _ = churn
    paths = [fold(result, k)[0] for k in (0, 1)]
    both = Voting(paths)
    both.save("both.pt")
    expected = load(result.run_dir).predict(frame, **CPU)
    np.testing.assert_array_equal(
        load("both.pt").predict(frame, **CPU).prediction, expected.prediction
    )


def test_a_saved_file_has_no_optimizer_and_runs_no_code(churn, tmp_path):
    result, frame, _ = churn
    predictor = load(result.run_dir)
    predictor.save("churn.pt")
    saved = torch.load("churn.pt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers", "loops"} & saved.keys()
    assert saved["data_spec"]["class_names"] == ["no", "yes"]
    again = load("churn.pt")
    assert again.class_names == ["no", "yes"]
    np.testing.assert_array_equal(
        again.predict(frame, **CPU).prediction, predictor.predict(frame, **CPU).prediction
    )

    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({**saved, "more": Code()}, "code.pt")
    with pytest.raises(ValueError, match="It is refused, because reading it could run code"):
        load("code.pt")
    assert not (tmp_path / "ran").exists()
    Path("cut.pt").write_bytes(Path("churn.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        load("cut.pt")
    saved["data_spec"]["kind"] = "sound"
    torch.save(saved, "later.pt")
    with pytest.raises(ValueError, match="of kind 'sound', which this version"):
        load("later.pt")


def test_resumed_and_tested_models_keep_what_they_know(churn, make_trainer):
    """A model whose weights a Trainer loads gets the description with them."""
    result, frame, path = churn
    checkpoint, rows = fold(result, 0)
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    model = MLPClassifier(data.in_features, 2, hidden=[8])
    make_trainer().validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False)
    table = load(model).predict(frame.iloc[rows.index], **CPU)
    np.testing.assert_array_equal(table.prediction, rows.prediction)


# Modules of somebody else


def test_ways_to_give_a_module(own, tmp_path):
    result, frame = own
    path, rows = fold(result, 0)
    for module in (Own, lambda: Own(3), Own(3)):
        predictor = load(path, module=module)
        table = predictor.predict(frame.iloc[rows.index], **CPU)
        np.testing.assert_array_equal(table.prediction, rows.prediction)
        assert set(table.to_pandas()["prediction"]) <= {"ant", "bee", "cow"}
    predictor.save("own.pt")
    again = load("own.pt", module=Own)
    np.testing.assert_array_equal(
        again.predict(frame.iloc[rows.index], **CPU).prediction, rows.prediction
    )
    with pytest.raises(ValueError, match=r"says nothing of its class.*module=YourModule"):
        load(path)
    average = load(result.run_dir, module=Own)
    table = average.predict(frame, **CPU)
    each = [load(fold(result, k)[0], module=Own).predict(frame, **CPU).prediction for k in (0, 1)]
    np.testing.assert_allclose(table.prediction, np.mean(each, 0), rtol=1e-6)
    average.save("average.pt")
    again = load("average.pt", module=Own).predict(frame, **CPU)
    np.testing.assert_array_equal(again.prediction, table.prediction)
    assert again.class_names == ["ant", "bee", "cow"]
    with pytest.raises(ValueError, match=r"average of test_predictor.Own.*module=YourModule"):
        load("average.pt")
    result.refit()
    refit = load(result.run_dir, module=Own)
    assert isinstance(refit.model, Own) and len(refit.predict(frame, **CPU)) == len(frame)


def test_a_foreign_module_of_a_plain_trainer_knows_its_table(make_trainer, own):
    """Its checkpoint has columns and normalisation, although nobody has written any of that."""
    _, frame = own
    data = TabularDataModule(frame, "kind", batch_size=16)
    trainer = make_trainer()
    model = Own()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("own.ckpt")
    table = load("own.ckpt", module=Own).predict(frame, **CPU)
    with torch.no_grad():
        expected = model.eval().net(data.transform(data.source.inputs)).softmax(1).numpy()
    np.testing.assert_allclose(table.prediction, expected, atol=1e-6)
    assert table.class_names == ["ant", "bee", "cow"]


def test_preprocess_makes_the_batches(dictionaries):
    path, rows = fold(dictionaries, 0)
    x = Samples().x
    predictor = load(path, module=OfDictionaries, preprocess=lambda x: {"x": torch.from_numpy(x)})
    table = predictor.predict(x[rows.index], **CPU)
    np.testing.assert_array_equal(table.prediction, rows.prediction)
    np.save("new.npy", x[rows.index])
    from_file = predictor.predict("new.npy", **CPU)
    np.testing.assert_array_equal(from_file.prediction, rows.prediction)
    assert set(table.to_pandas()["prediction"]) <= {"ant", "bee", "cow"}
    # Batch by batch of a loader, which has them as they are.
    loader = DataLoader([{"x": x[i]} for i in rows.index], batch_size=16)
    for preprocess in (None, lambda batch: batch):
        predictor = load(path, module=OfDictionaries, preprocess=preprocess)
        np.testing.assert_array_equal(predictor.predict(loader, **CPU).prediction, rows.prediction)
    with pytest.raises(TypeError, match=r"batches of somebody else's.*preprocess="):
        load(path, module=OfDictionaries).predict(["1 2 3 4"], **CPU)
    for run in path, dictionaries.run_dir:  # the fold average is a model of ours
        with pytest.raises(ValueError, match=r"fails with a batch of the new data.*preprocess="):
            load(run, module=OfDictionaries).predict(x, **CPU)


def test_preprocess_gets_tables_in_pieces(dictionaries):
    path, rows = fold(dictionaries, 0)
    x = Samples().x[rows.index].reshape(-1, 4)
    pd.DataFrame(x, columns=list("abcd")).to_csv("x.csv", index=False)
    sizes = []

    def preprocess(frame):
        sizes.append(len(frame))
        return {"x": torch.tensor(frame.to_numpy(np.float32))}

    predictor = load(path, module=OfDictionaries, preprocess=preprocess)
    table = predictor.predict("x.csv", **CPU)
    np.testing.assert_allclose(table.prediction, rows.prediction, atol=1e-6)
    assert sizes == [16] * (len(x) // 16) + [len(x) % 16] * (len(x) % 16 > 0)


class Wide(MLPClassifier):
    """A subclass of a user."""


def test_subclasses_of_ours(churn, make_trainer):
    _, frame, path = churn
    data = TabularDataModule(path, **SETTINGS, **GERMAN)
    model = Wide(data.in_features, 2, hidden=[8])
    make_trainer().fit(model, datamodule=data)
    model.save("wide.pt")
    expected = load(model).predict(frame, **CPU).prediction
    for how in ({"module": Wide}, {"classes": [Wide]}):
        np.testing.assert_array_equal(
            load("wide.pt", **how).predict(frame, **CPU).prediction, expected
        )
    with pytest.raises(ValueError, match="which is not a class of dlblocks"):
        load("wide.pt")


def test_a_model_over_a_net_of_your_own(churn, make_trainer):
    from dlblocks.models import Classifier

    _, frame, path = churn
    data = TabularDataModule(path, **SETTINGS, **GERMAN)

    def make():
        return Classifier(nn.Linear(data.in_features, 2), 2)

    model = make()
    make_trainer().fit(model, datamodule=data)
    model.save("net.pt")
    table = load("net.pt", module=make).predict(frame, **CPU)
    np.testing.assert_array_equal(table.prediction, load(model).predict(frame, **CPU).prediction)


def test_the_model_is_left_as_it_is(churn, make_trainer):
    """A model that is being trained may be looked at in between."""
    data = TabularDataModule(churn[2], **SETTINGS, **GERMAN)
    model = MLPClassifier(data.in_features, 2, hidden=[8], dropout=0.5)
    make_trainer().fit(model, datamodule=data)
    model.train()
    predictor = Predictor(model)
    first, second = (predictor.predict(churn[1], **CPU).prediction for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.training and model.net.training


def test_several_labels(make_trainer):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 4)).astype(np.float32)
    labels = (inputs[:, :3] > 0).astype(int)
    data = ArrayDataModule(inputs, labels, class_names=["sea", "sand", "sun"])
    model = MLPClassifier(4, 3, hidden=[], multilabel=True)
    make_trainer().fit(model, datamodule=data)
    model.save("labels.pt")
    frame = load("labels.pt").predict(inputs, **CPU).to_pandas()
    assert frame.columns.tolist() == [
        "index", *(f"prediction_{n}" for n in ("sea", "sand", "sun")),
        *(f"probability_{n}" for n in ("sea", "sand", "sun")),
    ]  # fmt: skip
    assert ((frame["probability_sun"] >= 0.5) == frame["prediction_sun"]).all()


def test_values_in_several_columns(make_trainer):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 4))
    data = ArrayDataModule(inputs, inputs[:, :2] * 100)
    model = MLPRegressor(4, 2, hidden=[], standardize_targets=True)
    make_trainer().fit(model, datamodule=data)
    table = load(model).predict(inputs, **CPU)
    assert table.to_pandas().columns.tolist() == ["index", "prediction_0", "prediction_1"]
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(inputs).float())
    np.testing.assert_allclose(table.prediction, expected, rtol=1e-5)


def test_a_model_that_knows_nothing():
    model = Model(nn.Linear(4, 2))
    model.preprocess = Preprocess([0.0] * 4, [2.0] * 4)
    table = load(model).predict(torch.ones(3, 4), **CPU)
    with torch.no_grad():
        expected = model.net(torch.full((3, 4), 0.5))
    np.testing.assert_array_equal(table.prediction, expected)
    with pytest.raises(
        TypeError, match=r"data is 'new.csv', and nothing says how inputs are made of it"
    ):
        load(model).predict("new.csv", **CPU)


def test_large_predictions_lie_on_the_disk(monkeypatch):
    monkeypatch.setattr(_npz, "IN_MEMORY", 1000)
    inputs = torch.rand(500, 4)
    model = MLPClassifier(4, 3)
    table = load(model).predict(inputs, batch_size=7, **CPU)
    assert isinstance(table.prediction, np.memmap) and len(table) == 500
    with torch.no_grad():
        np.testing.assert_allclose(table.prediction, model(inputs).softmax(1), atol=1e-6)


def test_load_is_there_without_anything_heavy():
    assert dlblocks.load is load
    said = commands.run(
        "python",
        "-c",
        "import dlblocks, sys; print('torch' in sys.modules, 'load' in dir(dlblocks))",
    )
    assert said.stdout.split()[0] == "False"


# The command line


def predict(*args):
    main(["predict", *map(str, args), "--device=cpu", "--progress_bar=false"])


def test_the_command_line_predicts_a_file(churn, capsys, tmp_path):
    result, frame, _ = churn
    new = write(frame.drop(columns="churned"), tmp_path / "new.csv")
    expected = load(result.run_dir).predict(new, id_column="id", **CPU)
    predict(result.run_dir, "--input", new, "--output=out/predictions.csv", "--id_column=id")
    assert f"Predictions of {N} samples are in out/predictions.csv." in capsys.readouterr().out
    found = pd.read_csv("out/predictions.csv")
    assert found.columns.tolist() == expected.to_pandas().columns.tolist()
    assert found["id"].tolist() == frame["id"].tolist()
    np.testing.assert_allclose(found["probability_no"], expected.prediction[:, 0], rtol=1e-6)
    predict(fold(result, 0)[0], f"--input={new}", "--output=out.npz", "--batch_size=100")
    with np.load("out.npz") as saved:
        assert saved["prediction"].shape == (N, 2)
    predict(result.run_dir, "--input", new, "--output=out.csv.gz")
    assert len(pd.read_csv("out.csv.gz")) == N


def test_the_command_line_takes_images_and_your_module(photos, dictionaries, place, tmp_path):
    files = sorted((place / "photos").glob("*/*.png"))[:3]
    predict(photos[0].run_dir, "--input", *files)
    assert pd.read_csv("predictions.csv")["file"].tolist() == list(map(str, files))
    path, rows = fold(dictionaries, 0)
    x = Samples().x[rows.index].reshape(-1, 4)
    pd.DataFrame(x, columns=list("abcd")).to_csv("x.csv", index=False)
    Path("users_own.py").write_text(
        "import torch\n"
        "from test_predictor import OfDictionaries as Net\n"
        "def prepare(frame): return {'x': torch.tensor(frame.to_numpy('float32'))}\n"
    )
    predict(path, "--input=x.csv", "--module=users_own.Net", "--preprocess=users_own.prepare")
    found = pd.read_csv("predictions.csv")
    np.testing.assert_allclose(found["probability_bee"], rows.prediction[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing", "--input=new.csv"], "nothing does not exist"),
        (["{run}"], "the following arguments are required: input"),
        (["{run}", "--input=nothing.csv"], "neither a file nor a folder"),
        (["{run}", "--input=short.csv"], "short.csv has no column 'city', 'since', 'zip'"),
        (["{run}", "--input=short.csv", "--unseen=no"], "'no' is not known"),
        (["{run}", "--input=short.csv", "--module=nowhere.Net"], "'nowhere.Net' cannot be imp"),
    ],
)
def test_the_command_line_says_what_is_wrong(args, said, churn, capsys):
    Path("short.csv").write_text("age;income\n3;4\n")
    with pytest.raises(SystemExit) as stop:
        predict(*(arg.format(run=churn[0].run_dir) for arg in args))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error and "Traceback" not in error


def test_voting_of_models_of_other_batches_or_tables(churn, make_trainer):
    """What only one table has, such as its number of missing cells, does not tell them apart."""

    def fit(frame, **settings):
        data = TabularDataModule(frame, **{**SETTINGS, **settings})
        model = MLPClassifier(data.in_features, 2, hidden=[])
        make_trainer().fit(model, datamodule=data)
        return model

    frame = people()
    filled = frame.fillna({"income": 1.0})
    both = Voting([fit(frame), fit(filled, batch_size=8)])
    table = load(both).predict(frame, **CPU)
    assert set(table.to_pandas()["prediction"]) <= {"no", "yes"}
    # Two cities only, whose inputs are others.
    with pytest.raises(TypeError, match="or its members on different data"):
        load(Voting([fit(frame), fit(frame.assign(zip="00001"))])).predict(frame, **CPU)


class Loads(TabularDataModule):
    """A table that is no table any more."""

    def load(self):
        source = super().load()
        self.table_columns = []
        return source


def test_a_datamodule_with_a_load_of_its_own(make_trainer):
    data = Loads(people(), **SETTINGS)
    model = MLPClassifier(data.in_features, 2, hidden=[])
    make_trainer().fit(model, datamodule=data)
    predictor = load(model)
    assert predictor.encoder.kind == "array"
    assert len(predictor.predict(data.source.inputs, **CPU)) == N
