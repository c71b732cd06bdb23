"""Where models come from: published checkpoints, parts, and what tells one from another."""
