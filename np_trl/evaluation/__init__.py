"""Evaluation of saved models on users: curves, texts, and baselines."""
