"""Generative models in a run folder, with the quality of their samples."""

import json

import pytest

import dlblocks
from dlblocks.data import DigitsDataModule
from dlblocks.models import VAE
from dlblocks.models.sample_quality import judge_model
from dlblocks.runs import fit_and_judge


@pytest.mark.parametrize("num_classes", [None, 10])
def test_the_run_folder_holds_the_quality_of_each_sampler(num_classes, tmp_path, capsys):
    data = DigitsDataModule(batch_size=256, val_fraction=0.1)
    model = VAE(
        [1, 8, 8], levels=17, latent_dim=2, hidden=[8], importance_samples=2,
        num_classes=num_classes,
    )  # fmt: skip
    samplers = {"drawn, once": {"seed": 1}, "means": {"noisy": False}}
    metrics = fit_and_judge(
        model, data, samplers=samplers, num_samples=30, run_dir=tmp_path / "run",
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False,
                 "enable_progress_bar": False},
    )  # fmt: skip
    again = dlblocks.load(tmp_path / "run")
    for name, options in samplers.items():
        _, expected = judge_model(again.model, data, 30, **options)
        found = {key: metrics[f"{name}/{key}"] for key in expected}
        assert found == expected
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: value["mean"] for name, value in summary["metrics"].items()} == metrics
    assert summary["baselines"]["uniform"]["test/bits_per_dim"] == pytest.approx(4.0875, abs=1e-4)
    figures = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert {"drawn_once.png", "means.png", "least_likely.png"} <= figures
    printed = capsys.readouterr().out
    assert "test/bits_per_dim" in printed and "two_sample_accuracy" in printed
