"""``python -m glmquant`` is the command ``glmquant``."""

from glmquant.cli import main

if __name__ == "__main__":
    main()
