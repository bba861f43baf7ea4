"""An experiment looked at from outside: what it will take, and how far it is. Nothing here changes anything.

plan.py       `Plan`: everything there is to know before anything is spent
tokens.py     how many documents and tokens, counted or estimated
disk.py       what will be written where, against what is free
memory.py     what an update holds in memory, term by term
speed.py      tokens per second of a few real updates, made by a child process (`probe.py`)
duration.py   the hours that come of it
findings.py   what would make the run fail, and what is worth a second thought
stages.py     how far each stage of the data is
training.py   how far the training is, and where it would start now
status.py     `Status`: how far an experiment is, and the command that comes next (no torch)
host.py       memory of this machine
show_*.py     either of them as text, as columns on a terminal, as JSON
"""
