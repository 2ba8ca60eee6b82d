"""A trainer's rows: what the model has no token for is nobody's."""

import json
import shutil

from mops_fl.config import Config
from mops_fl.training.trainer import Trainer


def test_a_row_with_a_token_beyond_the_vocabulary_is_left_out(tiny_llama, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "[PAD]"}))
    rows = [
        {"instruction": f"say {i}", "context": "", "response": f"it is {i}", "category": "a"}
        for i in range(40)
    ]
    for index in (3, 17):
        rows[index]["response"] = "use [PAD] here"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"dtype": "float32", "model": str(model), "dataset": "jsonl", "data-path": str(file)}
    sizes = {"num-samples": 0, "num-clients": 2, "active-clients": 2, "partition": "iid"}
    trainer = Trainer(Config.from_flat({**values, **sizes}))
    held = [trainer.holding(client) for client in (0, 1)]
    assert sum(h.train["a"] + h.test["a"] for h in held) == 38
    assert trainer.tokenised.unknown == {3, 17}
