"""Which client holds which examples, and each client's train and test part.

Partitions are made through flwr-datasets' partitioners; every client has at least
`min-client-samples` examples.
"""

from partitions.assignment import assign
from partitions.shares import shares

__all__ = ["assign", "shares"]
