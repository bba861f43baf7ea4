"""Pre-train small GPTs from scratch on PleIAs/SYNTH, from the hub's files to compared checkpoints."""

import os
import sys

__version__ = "0.1.0"

if sys.platform == "darwin":
    # torch reads it when it is loaded: what Apple's GPUs lack then runs on the CPU, and torch says so, once each.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
