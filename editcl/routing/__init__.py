"""Edit or train: what a task needs, decided from signals that are cheap to take, with reasons."""
