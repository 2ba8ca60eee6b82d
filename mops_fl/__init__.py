"""Federated Mixture of Prompts on Flower."""
