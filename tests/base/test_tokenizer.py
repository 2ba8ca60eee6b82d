"""A tokenizer gives back what it was given, or it is not used."""

import json
import shutil
from dataclasses import replace

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from experiments.golden.tiny import save_tiny_llama
from mops_fl.base.tokenizer import PROBE, load_tokenizer, read_tokenizer
from mops_fl.config import Config
from mops_fl.data.template import TAIL
from mops_fl.errors import ModelError
from mops_fl.models.weights import check_backbone

CONFIG = Config.from_flat({"dtype": "float32"})


def backbone(folder):
    return replace(CONFIG.backbone, model=str(folder))


@pytest.fixture
def folder(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_the_probe_has_the_form_of_the_template():
    assert TAIL in PROBE
    assert "\n\n" in PROBE
    assert "  " not in PROBE


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "NoSuchTokenizer"])
def test_a_byte_level_tokenizer_keeps_its_spaces_under_any_class(folder, tiny_llama, name):
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    given, plain = (load_tokenizer(backbone(f)) for f in (folder, tiny_llama))
    text = "hello  world\n\n### Response:\n"
    assert given(text)["input_ids"] == plain(text)["input_ids"]
    assert given.decode(given(text, add_special_tokens=False)["input_ids"]) == text
    assert (given.eos_token_id, given.bos_token_id) == (257, 256)


def test_a_tokenizer_that_loses_spaces_is_refused(folder):
    lossy = Tokenizer(models.WordLevel({"<unk>": 0, "The": 1}, unk_token="<unk>"))
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy.decoder = decoders.ByteLevel()
    lossy.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"its tokenizer gives '### Instr.*back as '<unk>"):
        check_backbone(replace(CONFIG, backbone=backbone(folder)))


def test_a_tokenizer_that_is_no_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read"):
        check_backbone(replace(CONFIG, backbone=backbone(folder)))


def test_a_tokenizer_model_of_another_kind_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read: INTERNAL"):
        check_backbone(replace(CONFIG, backbone=backbone(folder)))


@pytest.mark.parametrize("kind", ["eos_token", "bos_token"])
def test_a_special_token_beyond_the_vocabulary_is_refused(folder, kind):
    edit(folder / "tokenizer_config.json", **{kind: "[END]"})
    with pytest.raises(ModelError, match=rf"{kind} '\[END\]' has the id 258, .* has 258 tokens"):
        check_backbone(replace(CONFIG, backbone=backbone(folder)))


def test_no_end_of_sequence_is_refused(folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        check_backbone(replace(CONFIG, backbone=backbone(folder)))


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    """A SentencePiece model as LLaMA's: BPE with byte fallback, spaces kept as they are."""
    prefix = tmp_path_factory.mktemp("spm") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROBE.replace("\n", " "), "the words of a small text"] * 20),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def test_a_sentencepiece_model_alone_will_do(tmp_path, sentencepiece_file):
    folder = save_tiny_llama(tmp_path / "model", vocab_size=400)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    shutil.copyfile(sentencepiece_file, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert check_backbone(replace(CONFIG, backbone=backbone(folder))).vocab_size == 400
    found = read_tokenizer("spm", folder)
    trained = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    for text in (PROBE, "a small text\n\nof words", "Übergröße ✓"):
        assert found(text, add_special_tokens=False)["input_ids"] == trained.encode(text)
