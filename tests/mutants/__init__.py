"""Seeded bugs: edits of the shipped source that the tests must notice. `python -m tests.mutants` runs the campaign."""
