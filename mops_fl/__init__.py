"""Federated Mixture of Prompts on Flower."""

import logging

# On a CPU with bfloat16 instructions it says, whoever imports it, that it could not fetch a kernel
# from a hub; it has one of its own.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
