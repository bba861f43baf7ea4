"""How good a checkpoint is: loss on held-out documents, answers to held-out questions."""
