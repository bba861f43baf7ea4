"""From source files to batches of token ids. No torch here."""
