"""A base model before it is anything of ours: its files, type, tokenizer and device."""
