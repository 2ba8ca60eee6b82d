"""Local training, evaluation and pretraining: what a client does, apart from who asks it to."""
