"""Answers of a language model to everyday prompts, made by `examples/datasets/write_answers.py`."""
