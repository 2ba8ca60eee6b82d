"""What a run has trained, as a model that answers questions."""
