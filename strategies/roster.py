"""Who takes part in a run, who of them is there, and who trains in whose place."""

from collections.abc import Collection, Mapping

from strategies.admission import Client


class Roster:
    """The clients that a run began with: it is evaluated on these.

    In a simulation they are there to the end. In a deployment clients are absent for a while, and
    spares, who were more than `num-clients` or came later, train in their places.
    """

    def __init__(self, clients: Mapping[int, Client]) -> None:
        """Begin with clients that are all there, by partition id."""
        self.own = frozenset(clients)
        """Partition ids of the clients that the run began with."""
        self.clients = dict(clients)
        """Those of them that have described themselves, as they last did."""
        self.absent: dict[int, str] = {}
        """Those of them that cannot be asked, and why."""
        self.spares: dict[int, Client] = {}
        """Clients that are there besides."""
        self.places = len(self.own)
        """Clients that a run is meant to have: `own` may be fewer."""

    def look(self, server_round: int) -> None:
        """See who is there before something is asked of them."""

    def client(self, partition: int) -> Client:
        """A client, whether it is a spare or not."""
        return self.spares[partition] if partition in self.spares else self.clients[partition]

    def seats(self, trainees: Collection[int]) -> dict[int, int]:
        """Who can be drawn to train, and who then trains: the client itself where it is there.

        Args:
            trainees: the clients that may train.

        Returns:
            Partition ids by that of the client in whose place they train; a spare that takes the
            place of nobody has its own. Absent clients for whom there is no spare have none.
        """
        spares, seats = sorted(self.spares), {}
        for partition in sorted(trainees):
            if partition not in self.absent:
                seats[partition] = partition
            elif spares:
                seats[partition] = spares.pop(0)
        vacant = self.places - len(self.own)
        return seats | {spare: spare for spare in spares[:vacant]}
