"""What a checkpoint is worth: loss on held-out documents, answers to held-out questions."""
