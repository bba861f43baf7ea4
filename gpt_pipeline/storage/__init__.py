"""Files on disk: names, atomic writes, fingerprints, manifests, locks. Knows nothing of what is stored."""
