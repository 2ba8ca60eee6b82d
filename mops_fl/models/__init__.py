"""The frozen backbone, the trainable prompts and the gate, and their forward pass."""
