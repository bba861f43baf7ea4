"""What an experiment will take, before anything is spent. Nothing here changes anything.

plan.py       `Plan`: all of it together
tokens.py     how many documents and tokens, counted or estimated
disk.py       what will be written where, against what is free
device.py     what this machine would train on; host.py: its memory
speed.py      tokens per second of a few real updates, made by a child process (`probe.py`), and the hours they lead to
findings.py   what would make the run fail, and what is worth a second thought
show.py       the plan as lines and as JSON
"""
