"""Scores for pairs, tables and matrices of pairs."""
