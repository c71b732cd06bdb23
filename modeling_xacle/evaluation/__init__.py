"""How well scores agree with ratings: metrics, intervals, comparisons, calibration, reports."""
