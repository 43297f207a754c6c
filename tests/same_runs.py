"""Whether two cross-validations have left the same."""

import json

import torch


def without_seconds(summary):
    """Without what differs between two runs; ``folds.csv``, too, has seconds."""
    names = ("seconds", "run_dir", "files", "checksum")
    return {key: value for key, value in summary.items() if key not in names}


def assert_same(one, other, num_folds=3):
    """Scores, predictions and weights, bit for bit."""
    first, second = (json.loads((path / "summary.json").read_text()) for path in (one, other))
    assert without_seconds(first) == without_seconds(second)
    assert (one / "folds.json").read_bytes() == (other / "folds.json").read_bytes()
    assert (one / "oof.npz").read_bytes() == (other / "oof.npz").read_bytes()
    for fold in range(num_folds):
        paths = [path / f"fold-{fold}" for path in (one, other)]
        weights = [
            torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
            for path in paths
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        for name in ("history.csv", "metrics.csv"):
            logged = [(path / name).read_text() for path in paths]
            assert logged[0] == logged[1], (fold, name)
