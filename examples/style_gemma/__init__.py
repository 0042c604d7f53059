"""The base model of the demo, made by `examples/pretrain_gemma.py`."""
