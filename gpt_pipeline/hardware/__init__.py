"""What a machine computes on: which devices there are, what each of them can do, and how fast it could be."""
