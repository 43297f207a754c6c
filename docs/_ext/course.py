"""The pages of the gallery, in the order of the course."""

from __future__ import annotations

from pathlib import Path

COURSE = (
    "mlp",
    "universal_approximation",
    "optimizers",
    "batch_size",
    "nested_kfold",
    "kfold",
    "ensembles",
    "regularization",
    "cnn",
    "modern_cnn",
    "segmentation",
    "detection",
    "rnn",
    "transformer",
    "vae",
)

RECORDED = Path(__file__).parent.parent / "recorded"
PAGES = tuple(name for name in COURSE if (RECORDED / f"{name}.json").exists())


def by_course(file: str) -> int:
    """Return the place of a page, for sphinx-gallery, which asks for other recipes, too."""
    name = Path(file).stem
    return PAGES.index(name) if name in PAGES else len(PAGES)


def short_run(gallery_conf: object, script: dict[str, str]) -> list[str]:
    """Return the arguments with which a page runs while the site is built."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="gallery-")) / "run"
    return ["--fast_dev_run", f"--run_dir={folder}", "--accelerator=cpu"]
