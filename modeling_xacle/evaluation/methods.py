"""Names that the command line offers, told without loading what they do."""

from typing import Literal

# Of the map onto the listeners' scale, and of making one score of several.
CalibrationMethod = Literal["affine", "isotonic"]
EnsembleMethod = Literal["mean", "zscore", "rank", "nnls", "svr"]
