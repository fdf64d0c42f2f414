"""`python -m lightning_lr report LOGDIR`."""

from lightning_lr.report.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
