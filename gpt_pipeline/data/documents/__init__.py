"""From source files to documents: which files are needed, which documents repeat others, and where each is split."""
