"""Pre-train small GPTs from scratch on PleIAs/SYNTH, from the hub's files to compared checkpoints."""

__version__ = "0.1.0"
