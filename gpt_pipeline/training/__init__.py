"""The trainer: one process (or one per GPU) that can be stopped and resumed at any step."""
