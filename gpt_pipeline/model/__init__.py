"""Causal language models in torch."""
