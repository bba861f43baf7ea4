"""Checkpoints on disk: written so that a crash never leaves a bad one, verified before they are read, kept by rule.

manifest.py   what is known of a checkpoint without reading it (no torch)
snapshot.py   the state of a training, declared once, and its copy in host memory
save.py       `checkpoint_step_<N>.pt` and `best_model.pt`, each with its manifest
load.py       verified reading, and the model of a checkpoint
choose.py     the one that a person means by `best`, `last`, a step or a file (no torch)
leases.py     `hold` a checkpoint while it is being used (no torch)
retention.py  which checkpoints stay, and `announce_evaluator` (no torch)
room.py       free space
"""
