"""The cohort engine: a round's clients in batched forward passes, on Ray workers of our own.

`choose.start_engine` gives the ServerApp its Grid. Below it, `CohortGrid` cuts the messages of a
phase into shards, `Pool` hands the shards to workers, `RayWorker` is one on a GPU or core somewhere
in the Ray cluster, and `CohortWorker` serves a shard: clients together, failures apart.

The engine does not run the ClientApp: both are thin over `training.messages` and the `Trainer`.
"""
