"""Recipes: one YAML for each result that is reported."""
