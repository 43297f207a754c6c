"""Real data and weights that ship inside of packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def packaged_file(package: str, file: str, install: str) -> Path:
    """Find a file of an installed package, without an import of it.

    So nothing of the package runs, and what it needs itself may be missing.

    Args:
        package: Name of the package as it is imported, such as ``"skimage"``.
        file: Path of the file within the package.
        install: What to install, for the error: the arguments of ``pip install``.

    Raises:
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The installed version lacks the file.

    Example:
        >>> packaged_file("sklearn", "datasets/data/digits.csv.gz", "scikit-learn").name
        'digits.csv.gz'
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package}, which has {Path(file).name}, is not installed: pip install {install}"
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{package} is installed but lacks {file}; another version of it may have the file: "
            f"pip install {install}"
        )
    return path
