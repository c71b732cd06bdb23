"""Scoring: pairs, tables and matrices of pairs; what a model is, and whether this installation works."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "diagnostics": ["diagnose", "info_lines", "model_info", "report_lines", "self_check", "write_expected"],
        "ensemble": [
            "OWN_SCALE",
            "apply_gate",
            "check_new",
            "check_scales",
            "ensemble_card",
            "fit_gate",
            "join_members",
            "make_sum",
            "read_generators",
            "read_ratings",
            "save_ensemble",
            "score_members",
        ],
        "groups": ["check_finite"],
        "options": ["TableOptions"],
        "ranking": [
            "check_matrix",
            "check_picture",
            "draw_heat_map",
            "list_audio",
            "matrix_rows",
            "rank_pairs",
            "read_texts",
            "score_matrix",
        ],
        "scorer": ["join_processes", "load_scorer"],
        "table": ["ScoringReport", "score_table"],
    },
)
