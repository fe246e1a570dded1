"""Figures that can be repeated: one file a question, each run by itself as `python -m bench.NAME`."""
