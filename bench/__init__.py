"""Figures that can be repeated: one file a question, by itself as `python -m bench.NAME`."""
