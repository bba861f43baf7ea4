"""One text written token by token, for a person who watches.

sampling.py  which token comes next
stream.py    a model that writes on from a prompt, and its tokens as text
"""
