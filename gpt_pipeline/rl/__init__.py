"""Reinforcement learning with verifiable rewards: which questions, what is sampled, what it is worth."""
