"""``python -m dlblocks`` is ``dlblocks``."""

from dlblocks.cli import main

if __name__ == "__main__":
    main()
