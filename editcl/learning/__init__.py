"""Learning skills: tasks, adapters over the frozen model, strategies and the training loop."""
