"""Model cards: the template, and the reviewed card of each published checkpoint."""
