"""From SYNTH's files to batches of token ids. No torch here."""
