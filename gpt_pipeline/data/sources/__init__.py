"""Where raw files come from: the hub, a folder, or the sample that the project writes itself."""
