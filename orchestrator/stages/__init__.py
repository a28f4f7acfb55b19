"""The stages of a run, one file each."""

STAGES = ("sft", "rl", "heads", "evaluate", "protocols", "export")
"""In their order; each is skipped when its output is already there."""
