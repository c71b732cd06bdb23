"""Judges other than our own model."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "contrastive": ["ContrastiveTeacher", "score_pairs"],
        "contrastive_pipeline": ["ContrastivePipeline"],
        "ensemble_pipeline": ["EnsemblePipeline"],
        "families": ["Family"],
        "language_model": ["LanguageModelPipeline"],
        "embeddings": ["EmbeddingShards", "PairIndex", "embed_captions", "embed_clips"],
    },
)
