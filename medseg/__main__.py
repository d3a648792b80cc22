"""``python -m medseg`` and the console script."""

from medseg.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
