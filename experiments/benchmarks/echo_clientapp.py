"""``flwr-clientapp`` of a node that sends back what it was asked to train, at once.

    python echo_clientapp.py flwr-clientapp [options]

What a round of such nodes takes is Flower's own.
"""

import sys

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from mops_fl.client_app import answer
from mops_fl.deploy import fenced_clientapp
from mops_fl.wire.records import ARRAYS, METRICS

app = ClientApp()


@app.query("describe")
@app.evaluate()
def described(message: Message, context: Context) -> Message:
    """As any node."""
    reply = answer(message, context)
    if "train" in context.state:
        return reply
    if message.metadata.message_type == "query.describe":
        context.state["train"] = MetricRecord({"rows": sum(reply.content["config"]["train"])})
    return reply


@app.train()
def echoed(message: Message, context: Context) -> Message:
    """The tensors as they came, with the numbers that the server expects."""
    rows, steps = context.state["train"]["rows"], context.run_config["local-steps"]
    told = MetricRecord({"num-examples": rows, "steps": steps, "seconds": 0.0})
    told["nll"], told["tokens"] = 1.0, 1
    content = RecordDict({ARRAYS: message.content[ARRAYS], METRICS: told})
    return Message(content, reply_to=message)


if __name__ == "__main__":
    fenced_clientapp.installed_app = lambda *_: app
    fenced_clientapp.main(sys.argv[1:])
