"""The rows of raw files, a batch at a time in bounded memory, as columns of text."""
