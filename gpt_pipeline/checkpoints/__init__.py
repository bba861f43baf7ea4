"""Checkpoints on disk: a crash never leaves a bad one, each is verified before it is read, and rules say which to keep.

manifest.py   the manifest of a checkpoint, read without its file (no torch)
snapshot.py   the state of a training, declared once, and its copy in host memory
save.py       `checkpoint_step_<N>.pt` and `best_model.pt`, each with its manifest
load.py       verified reading, and the model of a checkpoint
choose.py     the checkpoint that `best`, `last`, a step or a file names (no torch)
leases.py     `hold` keeps a checkpoint while it is in use (no torch)
retention.py  which checkpoints are kept, and `announce_evaluator` (no torch)
"""
