"""Judges beside our own model."""
