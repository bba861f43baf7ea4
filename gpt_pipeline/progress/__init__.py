"""How far an experiment is, and what comes next: decided here, from its folders, for everyone who shows or acts on it.

stages.py       each stage of the data
training.py     the training: running, finished, stopped or died, and at which step
evaluations.py  which checkpoints still need an evaluation
losses.py       training and validation loss, of a file that grows
report.py       whether the report shows what there is
tracking.py     what MLflow lacks
dead_runs.py    announced runs whose process is gone
status.py       all of it together, and the command that comes next
"""
