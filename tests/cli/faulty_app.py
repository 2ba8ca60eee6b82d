"""The project's ClientApp with one fault; tests copy it into a staged app as its client.

`MOPS_FL_TEST_FAULT` is ``raise`` or ``die``, `MOPS_FL_TEST_FAULTY` the partitions that do so in
training.
"""

import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mops_fl.client_app import app as sound

app = ClientApp()


@app.query("describe")
@app.query("pretrain")
@app.query("personalise")
@app.evaluate()
def passed_on(message: Message, context: Context) -> Message:
    return sound(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    if str(context.node_config["partition-id"]) in os.environ["MOPS_FL_TEST_FAULTY"].split(","):
        if os.environ["MOPS_FL_TEST_FAULT"] == "die":
            os._exit(9)
        raise ValueError("the disk of this client is broken")
    return sound(message, context)
