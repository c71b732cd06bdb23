"""The stages: recipes, losses, batches, trainers, and what a run leaves behind."""
