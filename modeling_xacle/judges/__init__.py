"""Judges other than our own model."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "clap": ["ClapTeacher", "score_pairs"],
        "clap_pipeline": ["ZeroShotAlignmentPipeline"],
        "embeddings": ["EmbeddingShards", "PairIndex", "embed_captions", "embed_clips"],
    },
)
