"""The page to start from: each experiment of a project with its state, its curve and its newest answers.

state.py       in which state an experiment is, in a word
card.py        what the page shows of one experiment
watch.py       all experiments of a project, looked at again and again at little cost
page.py        HTML
comparison.py  the page of all experiments beside each other

Whoever serves it brings what the history of runs knows, and the addresses of other pages.
"""
