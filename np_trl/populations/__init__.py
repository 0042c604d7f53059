"""Simulated users with known limits."""

from np_trl.populations.everyday import everyday_population
from np_trl.populations.scored_responses import simulate_users
from np_trl.populations.style import style_bayes_accuracy, style_population


__all__ = ["everyday_population", "simulate_users", "style_bayes_accuracy", "style_population"]
