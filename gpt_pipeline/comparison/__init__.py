"""Experiments beside each other: what each reached, at what cost, and what sets them apart.

compare.py  the figures of several experiments, and whether they can be compared
table.py    the same as a table: for a terminal, as plain columns, as markdown, as JSON
picture.py  the loss curves of several in one
"""
