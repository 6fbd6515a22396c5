import numpy as np
import torch

from datamodules.core.wordpiece import TokenizerOptions
from datamodules.text import TextCorpus
from lightning_modules.electra.modeling import unigram_logits
from lightning_modules.electra.module import Electra
from tests.text import text_batch, word_tokenizer


def test_token_counts_are_those_of_the_training_text(tmp_path):
    text = "w5 w6 w6 w7\n\nw6 [MASK] w9 w9\n"
    (tmp_path / "train.txt").write_text(text)
    word_tokenizer().save_pretrained(tmp_path / "words")
    data = TextCorpus(
        TokenizerOptions(name=str(tmp_path / "words")),
        2,
        1,
        source=str(tmp_path / "train.txt"),
        validation_fraction=0.0,
        accept=["unknown"],
        sequence_length=8,
        examples="documents",
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup()
    counts = data.token_counts()
    assert counts.shape == (100,) and counts[[5, 6, 7, 8, 9]].tolist() == [1, 3, 1, 0, 2]
    assert counts[[0, 2, 3, 4]].sum() == 0, "special tokens are never drawn"


def test_unigram_generator_draws_by_frequency():
    method = Electra(hidden_size=32, num_layers=1, embedding_size=16, max_positions=64, generator="unigram")
    method.build(word_tokenizer(), 64)
    counts = np.zeros(100, np.int64)
    counts[[10, 20, 30]] = [60, 30, 10]
    method.frequencies_V = unigram_logits(torch.from_numpy(counts))
    drawn = torch.cat([method.corrupt(text_batch([64] * 40), key).sampled_M for key in range(30)])
    shares = torch.bincount(drawn, minlength=100) / len(drawn)
    assert len(drawn) > 10_000 and set(drawn.tolist()) == {10, 20, 30}
    torch.testing.assert_close(shares[[10, 20, 30]], torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)
