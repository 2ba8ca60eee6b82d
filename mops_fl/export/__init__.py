"""Handing on what a run has trained: folders that transformers or peft load."""
