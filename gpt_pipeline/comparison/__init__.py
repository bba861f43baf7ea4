"""Comparing experiments: what each reached, at what cost, and how their settings differ.

standings.py  what a comparison holds
compare.py    the figures of several experiments, and whether they can be compared
by_key.py     a metric against a key in which the experiments differ
curves.py     the curves of several experiments on the same axes
answers.py    what they answered to the same questions
page.py       the comparison as an HTML page
show.py       the same as lines, markdown and JSON, and the loss curves of several in one picture
"""
