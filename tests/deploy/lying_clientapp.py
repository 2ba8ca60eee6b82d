"""``flwr-clientapp`` of a node that answers every train message wrongly, each round in another way.

python lying_clientapp.py flwr-clientapp [options]
"""

import sys

import numpy as np
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from mops_fl.client_app import answer
from mops_fl.deploy import fenced_clientapp
from mops_fl.wire.records import ARRAYS, CONFIG, METRICS, from_array_record, to_array_record

liar = ClientApp()


@liar.query("describe")
@liar.query("personalise")
@liar.evaluate()
def honest(message: Message, context: Context) -> Message:
    return answer(message, context)


@liar.train()
def lie(message: Message, context: Context) -> Message:
    reply = answer(message, context)
    made = from_array_record(reply.content[ARRAYS])
    metrics = reply.content[METRICS]
    assert isinstance(metrics, MetricRecord)
    match message.content[CONFIG]["server-round"] % 5:
        case 0:
            raise RuntimeError("this node is broken")
        case 1:
            made = {name: np.full_like(value, np.nan) for name, value in made.items()}
        case 2:
            made = {name: value[:-1] for name, value in made.items()}
        case 3:
            made = {name: np.full_like(value, 1e30) for name, value in made.items()}
        case 4:
            metrics["num-examples"] = 10**15
    reply.content[ARRAYS] = to_array_record(made)
    return reply


if __name__ == "__main__":
    fenced_clientapp.installed_app = lambda *_: liar
    fenced_clientapp.main(sys.argv[1:])
