"""Tables of pairs: their schema, columns and files, how they are read, checked and saved."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "columns": ["FEATURES", "PREDICTION_COLUMNS", "clean_caption", "find_column"],
        "files": ["check_outputs", "json_text", "write_whole"],
        "pairs": ["check_rows", "dataset_licence", "load_pairs", "make_dataset", "save_dataset", "unusable_audio"],
        "sources": ["STDIN", "PairSource"],
        "tables": ["check_table_suffix", "read_table", "csv_text", "write_table"],
    },
)
