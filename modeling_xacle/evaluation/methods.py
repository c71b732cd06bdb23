"""Names of the methods that the command line offers, without loading the methods."""

from typing import Literal

# Methods of the map onto the listeners' scale, and of combining several scores into one.
CalibrationMethod = Literal["affine", "isotonic"]
EnsembleMethod = Literal["mean", "zscore", "rank", "nnls", "svr"]
# Methods of rules for single pairs, which ranks and support vectors are not.
ModelEnsembleMethod = Literal["mean", "zscore", "nnls", "gate"]
