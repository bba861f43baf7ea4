"""The experiment file: one YAML document, checked key by key."""
