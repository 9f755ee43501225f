"""Sweeps: run a chapter over a grid of parameters, one row a run.

``python -m shared.sweep --help`` says how to run one; a chapter reads the rows with
`read_rows`.
"""

from shared.sweep.rows import read_rows

__all__ = ["read_rows"]
