"""Answers at once, or after a long time."""

import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    if context.run_config["behaviour"] == "slow":
        time.sleep(600)
    return Message(RecordDict(), reply_to=message)
