"""What an edge machine decides and keeps: its facts, its policy, and its resident trainer."""
