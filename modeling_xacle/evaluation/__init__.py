"""Evaluation: how well scores agree with ratings, by metrics, intervals, comparisons, calibration and reports."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "calibrate": [
            "ScoreCalibration",
            "calibrate_model",
            "calibrate_table",
            "calibration_report",
            "calibration_text",
            "fit_score_calibration",
            "load_calibration",
            "save_calibration",
        ],
        "compare": ["compare_systems", "comparison_text", "read_systems"],
        "ensemble_fit": ["WEIGHTED_SUMS", "RatedScores", "fit_text", "generator_folds", "judge_fit", "sum_fit"],
        "ensemble_tables": [
            "apply_weights",
            "combine_members",
            "ensemble_text",
            "read_members",
            "save_weights",
            "write_ensemble",
        ],
        "evaluate": ["EvaluationPairs", "dropped_notes", "evaluate_pairs", "read_pairs", "read_ratings"],
        "figures": ["draw_reliability", "figure_bytes"],
        "listeners": ["listeners_ceiling"],
        "metrics": ["METRICS", "alignment_metrics"],
        "report": ["REPORT_FILE", "check_report_folder", "evaluation_text", "write_report"],
        "resampling": ["bootstrap_intervals", "paired_bootstrap", "paired_permutation_test"],
        "score_tables": ["read_score_table"],
        "submission": ["describe_systems", "submit_tables"],
    },
)
