"""Which client holds which examples, which are the server's, and the parts of each client.

Partitions are made through flwr-datasets' partitioners; every client has at least
`min-client-samples` examples.
"""

from partitions.assignment import assign
from partitions.shares import own_share, server_rows, shares

__all__ = ["assign", "own_share", "server_rows", "shares"]
