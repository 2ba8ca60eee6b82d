"""Finding the nodes of a run, and following them: in a deployment they go, and come back."""

import logging
import math
import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from mops_fl.config import Config
from mops_fl.data.split import unseen_partitions
from mops_fl.errors import RunError
from mops_fl.run.folder import RunFolder
from mops_fl.wire.asking import ask, collect
from mops_fl.wire.replies import Description, sift
from mops_fl.wire.requests import DESCRIBE
from strategies import Client, Roster, admit, minimum, misfit, require

_PATIENCE_SECONDS = 60.0
"""How long to wait for a further node to connect, and for a new one to describe itself."""

_NOT_CONNECTED = "its node is not connected"

IDENTITY = ("model_digest", "tokenizer_digest", "data_digest", "dtype")
"""What a client may not change within a run."""


def find_clients(config: Config, folder: RunFolder, grid: Grid, *, simulated: bool) -> Roster:
    """Wait for all nodes, ask each what it is, and take those that fit together.

    Raises:
        RunError: too few of them can take part; in a simulation, if there are more or fewer.
    """
    expected = config.partition.num_clients
    nodes = _wait_for_nodes(grid, expected)
    if simulated and len(nodes) != expected:
        raise RunError(
            f"num-clients={expected} but {len(nodes)} nodes are connected: make num-clients "
            "and the number of nodes (num-supernodes in a simulation) the same"
        )
    described, failures = ask(
        grid,
        DESCRIBE,
        {node: RecordDict() for node in nodes},
        {node: node for node in nodes},
        lambda _node, content: Description.read(content, expected),
    )
    refused = {f"node {node}": reason for node, reason in failures.items()}
    identities = folder.facts.get("clients", {})
    changes = {node: _change(identities, own) for node, own in described.items()}
    refused |= {f"node {node}": change for node, change in changes.items() if change}
    same = {node: own for node, own in described.items() if not changes[node]}
    clients, strangers = admit(config, same)
    refused |= strangers
    own = sorted(clients) if simulated else _own(config, folder, clients)
    if not simulated:
        refused |= _missing(folder.held_out() or range(expected), clients, refused)
    for who, reason in refused.items():
        log(logging.WARNING, "%s does not take part: %s", who, reason)
    there = min(len(clients), expected) if clients.keys() & own else 0
    require("{} can take part", there, expected, config.federation, refused)
    folder.update(refused_clients=refused)
    if simulated:
        return Roster(clients)
    return Federation(config, folder, grid, own, clients, described)


def _own(config: Config, folder: RunFolder, clients: Iterable[int]) -> list[int]:
    """The clients that a run began with, or begins with: those of the lowest partition ids.

    Raises:
        RunError: `unseen-clients` are drawn from other ids.
    """
    expected = config.partition.num_clients
    own = sorted(folder.held_out() or clients)[:expected]
    if config.partition.num_unseen and any(partition >= expected for partition in own):
        raise RunError(
            f"unseen-clients={config.partition.unseen_clients:g} are drawn from the partition ids "
            f"0 to {expected - 1}, but the nodes have {own}: give them these ids"
        )
    return own


def _missing(
    wanted: Iterable[int], clients: Iterable[int], refused: Mapping[str, str]
) -> dict[str, str]:
    """The clients that a run wants and nobody is, where partition ids are the first numbers."""
    known, there = {*wanted}, {*clients}
    lacking = sorted(known - there) if there <= known else []
    names = (f"client {partition}" for partition in lacking)
    return {name: "no node takes part as this client" for name in names if name not in refused}


class Federation(Roster):
    """The clients of a deployment, looked for anew before anything is asked of them.

    Every node that is connected and does not take part is asked to describe itself before each
    phase: it may be new, have been started again, or have been mended. Only one that was not there
    before is waited for.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        grid: Grid,
        own: Iterable[int],
        clients: Mapping[int, Client],
        described: Mapping[int, Description],
    ) -> None:
        """Begin with who is there.

        Args:
            config: the run.
            folder: told of who comes and goes.
            grid: of the run.
            own: partition ids of the clients that the run began with.
            clients: those that may take part, by partition id.
            described: what each node said of itself, whether it may or not.
        """
        super().__init__({p: client for p, client in clients.items() if p in {*own}})
        self.own = frozenset(own)
        self.places = config.partition.num_clients
        self.spares = {p: client for p, client in clients.items() if p not in self.own}
        self.absent = dict.fromkeys(sorted(self.own - clients.keys()), _NOT_CONNECTED)
        self._config, self._folder, self._grid = config, folder, grid
        self._described = dict(described)
        self._met = set(described)
        self._asked: dict[str, int] = {}
        self._identities: dict[str, dict[str, str]] = folder.facts.get("clients", {})
        for client in clients.values():
            self._remember(client)
        for node, description in described.items():
            self._blame(Client(node, description))
        self._tell(0)

    def look(self, server_round: int) -> None:
        """See which nodes are connected, and meet those that do not take part yet."""
        federation = self._config.federation
        least = minimum(len(self.own), federation.min_reply_fraction)
        connected = set(_wait_for_nodes(self._grid, least))
        taking_part = {c.node for p, c in self.clients.items() if p not in self.absent}
        taking_part |= {client.node for client in self.spares.values()}
        self._forget(connected)
        self._meet(connected - taking_part)
        self._tell(server_round)

    def _forget(self, connected: set[int]) -> None:
        """Let go of nodes that are not connected any more."""
        self._met &= connected
        refused = self._folder.facts["refused_clients"]
        for node in [name for name in refused if name.startswith("node ")]:
            if int(node.removeprefix("node ")) not in connected:
                del refused[node]
        self._described = {n: own for n, own in self._described.items() if n in connected}
        self.spares = {p: client for p, client in self.spares.items() if client.node in connected}
        for partition, client in self.clients.items():
            if client.node not in connected:
                self.absent.setdefault(partition, _NOT_CONNECTED)

    def _meet(self, nodes: set[int]) -> None:
        """Ask nodes what they are, and take those that fit."""
        fresh = sorted(nodes - set(self._asked.values()))
        messages = [Message(RecordDict(), message_type=DESCRIBE, dst_node_id=n) for n in fresh]
        self._grid.push_messages(messages)
        self._asked |= {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        patience = min(_PATIENCE_SECONDS, self._config.federation.round_timeout or math.inf)
        waiting = set(self._asked)
        replies = collect(self._grid, waiting, patience if nodes - self._met else 0.0)
        self._met |= nodes
        answered = {id_: node for id_, node in self._asked.items() if id_ not in waiting}
        self._asked = {id_: node for id_, node in self._asked.items() if id_ in waiting}
        expected = self._config.partition.num_clients
        described, refused = sift(
            answered, replies, lambda _node, content: Description.read(content, expected)
        )
        self._described |= described
        for node, description in described.items():
            newcomer = Client(node, description)
            if fault := self._blame(newcomer):
                refused[node] = fault
            else:
                self._admit(newcomer)
        self._refuse(refused)

    def _blame(self, newcomer: Client) -> str:
        """Why a node may not take part, which is why the client that it says it is is absent."""
        partition, fault = newcomer.description.partition, self._fault(newcomer)
        if fault and partition in self.absent:
            self.absent[partition] = fault
        return fault

    def _fault(self, newcomer: Client) -> str:
        """Why a node that described itself may not take part; empty if it may."""
        partition = newcomer.description.partition
        if sum(own.partition == partition for own in self._described.values()) > 1:
            return f"several nodes have partition-id={partition}: give every node its own"
        member = next(iter(self.clients.values()))
        change = _change(self._identities, newcomer.description)
        return change or misfit(self._config, newcomer, member)

    def _admit(self, newcomer: Client) -> None:
        partition = newcomer.description.partition
        self._remember(newcomer)
        if partition in self.own:
            self.clients[partition] = newcomer
            self.absent.pop(partition, None)
        else:
            self.spares[partition] = newcomer
        refused = self._folder.facts["refused_clients"]
        for who in (f"node {newcomer.node}", f"client {partition}"):
            refused.pop(who, None)
        log(logging.INFO, "client %d is there, with node %d", partition, newcomer.node)

    def _remember(self, client: Client) -> None:
        """What the client is, to know it by when it comes again, also in a resumed run."""
        identity = {key: getattr(client.description, key) for key in IDENTITY}
        self._identities[str(client.description.partition)] = identity

    def _refuse(self, nodes: Mapping[int, str]) -> None:
        refused = self._folder.facts["refused_clients"]
        for node, reason in nodes.items():
            if refused.get(f"node {node}") != reason:
                log(logging.WARNING, "node %d does not take part: %s", node, reason)
            refused[f"node {node}"] = reason

    def _tell(self, server_round: int) -> None:
        """Log and record who is absent, and which spare is in whose place."""
        now = {
            "spares": {str(spare): self._place(spare) for spare in sorted(self.spares)},
            "absent_clients": {str(p): reason for p, reason in sorted(self.absent.items())},
        }
        for what, new in now.items():
            for partition, said in new.items():
                if self._folder.facts.get(what, {}).get(partition) != said:
                    log(logging.WARNING, "round %d: client %s: %s", server_round, partition, said)
        self._folder.update(clients=self._identities, **now)

    def _place(self, spare: int) -> str:
        """In whose place a spare trains."""
        if self._config.training != "federated":
            return "waiting: training=local has no tensors of it"
        if self._config.privacy.on:
            return "waiting: dp=central draws from the clients that the run began with"
        unseen = unseen_partitions(self._config.partition, self._config.seed)
        seats = self.seats(self.own - unseen)
        places = [partition for partition, who in seats.items() if who == spare]
        if not places:
            return "waiting"
        return "in a free place" if places == [spare] else f"in the place of client {places[0]}"


def _change(identities: Mapping[str, Mapping[str, str]], description: Description) -> str:
    """What a client of this partition id was before and is no longer; empty if nothing."""
    before = identities.get(str(description.partition), {})
    changed = [
        f"its {key} is {getattr(description, key)} but the run began with {value}"
        for key, value in before.items()
        if getattr(description, key) != value
    ]
    if not changed:
        return ""
    return f"{'; '.join(changed)}: a client keeps its model and data within a run"


def _wait_for_nodes(grid: Grid, expected: int) -> list[int]:
    """The nodes that are connected: as many as expected, or as no more come to in a while."""
    connected = list(grid.get_node_ids())
    most, deadline = len(connected), time.monotonic() + _PATIENCE_SECONDS
    if most < expected:
        log(logging.INFO, "waiting for nodes: %d of %d are connected", most, expected)
    while len(connected) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
        connected = list(grid.get_node_ids())
        if len(connected) > most:
            most, deadline = len(connected), time.monotonic() + _PATIENCE_SECONDS
    return connected
