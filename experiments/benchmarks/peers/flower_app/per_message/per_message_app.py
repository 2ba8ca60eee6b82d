"""A Flower app in the way of Flower's example of fine-tuning a language model.

The server loads the whole model for its initial arrays; every message loads it again, wraps it with
peft, takes over the arrays received and trains. It does less than the example: the rows come
tokenised, the training loop is plain, and nothing is saved.
"""

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from experiments.benchmarks.peers import peft_lora
from experiments.benchmarks.peers.exchange import Answer, Round, Task

client = ClientApp()
server = ServerApp()


@lru_cache(maxsize=1)
def _task(path: str) -> Task:
    return Task.read(Path(path))


@client.train()
def train(message: Message, context: Context) -> Message:
    """One client's part of a round: node `i` is the round's `i`-th client."""
    task = _task(str(context.run_config["task"]))
    server_round = int(message.content["config"]["server-round"])
    own = task.rounds[server_round - 1][int(context.node_config["partition-id"])]
    model = peft_lora.load(task)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    local = peft_lora.train(model, own.rows, task)
    metrics = MetricRecord({**vars(local), "num-examples": own.examples})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's own FedAvg over all nodes."""
    task = _task(str(context.run_config["task"]))
    model = peft_lora.load_initial(task)
    nodes, ends = len(task.rounds[0]), []
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_available_nodes=nodes,
        train_metrics_aggr_fn=_sums,
    )
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=len(task.rounds),
        evaluate_fn=lambda _round, _arrays: ends.append(time.perf_counter()),
    )
    rounds = [
        Round(
            seconds=ends[number] - ends[number - 1],
            training=float(sums["seconds"]),
            steps=int(sums["steps"]),
            nll=float(sums["nll"]),
            tokens=int(sums["tokens"]),
        )
        for number, sums in result.train_metrics_clientapp.items()
    ]
    answer = Answer(peft_lora.trainable(model), rounds, peft_lora.versions("flwr", "ray"))
    answer.write(Path(str(context.run_config["answer"])))


def _sums(contents: Iterable[RecordDict], _weighted_by: str) -> MetricRecord:
    """The clients' figures added up."""
    records = [content["metrics"] for content in contents]
    return MetricRecord({key: sum(record[key] for record in records) for key in records[0]})
