"""Fine-tuning: logits of transformers' classes, learning rates by depth, metrics of the whole, warm start, export."""

import json

import numpy as np
import pytest
import torch
from lightning import LightningModule
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
)

from callbacks.electra_panel import ElectraPanel
from callbacks.validation import Validation
from launch.config import resolve
from launch.config.errors import ConfigError
from launch.export import main
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.export import save_network
from lightning_modules.electra.module import Electra
from lightning_modules.finetune import objective
from lightning_modules.finetune.modeling import Classifier, UntrainedEncoder
from lightning_modules.finetune.module import Finetune
from tests.embedders import letters_tokenizer, source
from tests.runs import launch, metrics
from tests.text import pad, text_batch, word_tokenizer

LENS = [40, 31, 31, 12, 9, 8, 8, 5, 3]
FRESH = {"hidden_size": 32, "num_layers": 3, "num_heads": 2, "embedding_size": 16, "max_positions": 64}


def finetune(labels: list[str] | None = None, **options) -> Finetune:
    torch.manual_seed(0)
    method = Finetune(**{"untrained": UntrainedEncoder(**FRESH), **options})
    method.label_names = ["a", "b", "c"] if labels is None else labels
    method.build(word_tokenizer(), 64)
    return method


def labelled(labels, seed: int = 0, first_sample: int = 0) -> dict:
    batch = text_batch(LENS, seed=seed, first_sample=first_sample)
    return {**batch, "label_B": torch.as_tensor(labels)}


def widen(method: Finetune) -> None:
    """Let the outputs of an untrained encoder differ between texts."""
    torch.manual_seed(1)
    for p in method.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p)


def padded(batch: dict) -> dict:
    return {
        "input_ids": pad(batch, batch["ids_T"]),
        "token_type_ids": pad(batch, batch["type_T"]),
        "attention_mask": pad(batch, torch.ones_like(batch["ids_T"])),
    }


def test_logits_equal_electra_for_sequence_classification():
    method, batch = finetune(head="hugging_face").eval(), text_batch(LENS)
    peer = ElectraForSequenceClassification(ElectraConfig(**method.model.network.config.to_dict())).eval()
    peer.load_state_dict(method.model.network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(method.model(batch), peer(**padded(batch)).logits, atol=1e-6, rtol=1e-5)


def test_logits_equal_bert_for_sequence_classification():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)
    ours, batch = Classifier(config, "hugging_face", 4, 0.1).eval(), text_batch(LENS)
    peer = BertForSequenceClassification(BertConfig(**ours.network.config.to_dict())).eval()
    peer.load_state_dict(ours.network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), peer(**padded(batch)).logits, atol=1e-6, rtol=1e-5)


def test_the_linear_head_is_one_layer_on_the_first_token():
    method, batch = finetune(head="linear").eval(), text_batch(LENS)
    peer = ElectraModel(ElectraConfig(**method.model.network.config.to_dict())).eval()
    peer.load_state_dict(method.model.network.state_dict())
    with torch.no_grad():
        first = peer(**padded(batch)).last_hidden_state[:, 0]
        expected = first @ method.model.output.weight.T + method.model.output.bias
        torch.testing.assert_close(method.model(batch), expected, atol=1e-6, rtol=1e-5)
    assert sum(p.numel() for n, p in method.named_parameters() if ".output." in n and "encoder" not in n) == 33 * 3


@pytest.mark.parametrize(("form", "extra"), [("paper", 0), ("as_released", 1)])
@pytest.mark.parametrize("head", ["linear", "hugging_face"])
def test_learning_rates_by_depth(form, extra, head):
    method = finetune(head=head, learning_rate=1e-3, layer_decay=0.5, layer_decay_form=form, weight_decay=0.01)
    names = {id(p): name for name, p in method.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in method.decay_groups() for p in group["params"]}
    assert set(rates) == set(names.values())
    for name, rate in rates.items():
        if ".encoder.layer." in name:
            layer = int(name.split(".encoder.layer.")[1].split(".")[0])
            assert rate == 1e-3 * 0.5 ** (3 - layer + extra), name  # n + 1 - i and, released, once more
        elif ".embeddings" in name:
            assert rate == 1e-3 * 0.5 ** (4 + extra), name
        else:
            assert rate == 1e-3, name
    heads = {name for name, rate in rates.items() if rate == 1e-3}
    assert len(heads) == (2 if head == "linear" else 4) and any("embeddings_project" in name for name in rates)
    decays = {names[id(p)]: group["weight_decay"] for group in method.decay_groups() for p in group["params"]}
    assert all((decay == 0) == (name.endswith("bias") or "LayerNorm" in name) for name, decay in decays.items())


def test_losses_are_those_of_torch_and_do_not_depend_on_the_cut():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2])
    whole = objective.classification_loss(logits, labels)
    parts = [objective.classification_loss(logits[s], labels[s]) for s in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(whole.sum, sum(part.sum for part in parts))
    torch.testing.assert_close(whole.sum / whole.count, torch.nn.functional.cross_entropy(logits, labels))
    found = objective.regression_loss(logits[:, :1], labels.double())
    torch.testing.assert_close(found.sum / 6, ((logits[:, 0] - labels) ** 2).mean())


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"]])
def test_metrics_equal_sklearn_over_the_whole_evaluation(labels):
    method = finetune(labels).eval()
    widen(method)
    truth = torch.randint(len(labels), (2 * len(LENS),), generator=torch.Generator().manual_seed(3))
    batches = [labelled(truth[s : s + len(LENS)], seed=s, first_sample=s) for s in (0, len(LENS))]
    method.start_evaluation()
    with torch.no_grad():
        for batch in reversed(batches):  # the order in which batches come does not matter
            method.evaluation_step([batch])
        chosen = torch.cat([method.model(batch).argmax(-1) for batch in batches])
    found = method.end_evaluation("val")
    assert found["val/accuracy"] == accuracy_score(truth, chosen)
    assert found["val/mcc"] == matthews_corrcoef(truth, chosen) != 0
    average = "binary" if len(labels) == 2 else "macro"
    assert found["val/f1"] == f1_score(truth, chosen, average=average)
    answers = objective.gathered(method._answers)
    assert answers.sample_N.tolist() == list(range(2 * len(LENS)))


def test_correlations_equal_scipy_and_are_zero_for_a_constant():
    method = finetune([], task="regression").eval()
    widen(method)
    truth = torch.randn(len(LENS), generator=torch.Generator().manual_seed(2))
    method.start_evaluation()
    with torch.no_grad():
        method.evaluation_step([labelled(truth)])
        values = method.model(labelled(truth))[:, 0]
    found = method.end_evaluation("test")
    assert found["test/spearman"] == pytest.approx(spearmanr(values, truth).statistic)
    assert found["test/pearson"] == pytest.approx(pearsonr(values.double(), truth.double()).statistic)
    constant = objective.Answers(np.arange(4), np.ones((4, 1)), np.arange(4.0))
    assert objective.regression_metrics(constant) == {"spearman": 0.0, "pearson": 0.0}


def test_an_evaluation_without_examples_has_no_metrics():
    method = finetune()
    method.start_evaluation()
    assert method.end_evaluation("val") == {"val/loss": 0}


def test_predictions_come_in_the_order_of_the_data():
    method = finetune().eval()
    batch = labelled(torch.zeros(len(LENS), dtype=torch.int64))
    mixed = torch.tensor([4, 7, 0, 2, 8, 1, 6, 3, 5])
    with torch.no_grad():
        rows = method.predict_step([{**batch, "sample_B": mixed}], 0)
        shares = torch.softmax(method.model(batch), -1)
    assert [row["sample"] for row in rows] == list(range(9))
    for row, sample in zip(shares, mixed.tolist(), strict=True):
        assert list(rows[sample]["probabilities"].values()) == row.tolist()
        assert rows[sample]["label"] == "abc"[row.argmax()]


def test_an_export_is_read_by_transformers_with_the_names_of_the_classes(tmp_path):
    method, batch = finetune(["bad", "good"], head="hugging_face").eval(), text_batch(LENS)
    method.export(tmp_path / "hf", word_tokenizer())
    peer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert peer.config.id2label == {0: "bad", 1: "good"}
    with torch.no_grad():
        torch.testing.assert_close(method.model(batch), peer(**padded(batch)).logits, atol=1e-6, rtol=1e-5)


def test_an_exported_classifier_takes_the_names_of_special_tokens_for_characters(tmp_path):
    """As in training and predictions: a text may hold them."""
    finetune(["bad", "good"], head="hugging_face").export(tmp_path, word_tokenizer())
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.sep_token_id not in again("w7 [SEP] w8", add_special_tokens=False)["input_ids"]


def test_the_linear_head_cannot_be_exported(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.head = linear: .* hugging_face"):
        finetune().export(tmp_path / "hf", word_tokenizer())


def electra() -> Electra:
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_layers": 2, "embedding_size": 16, "max_positions": 64, "num_heads": 2}
    method = Electra(**sizes, generator_width=0.5)
    method.build(word_tokenizer(), 64)
    return method


def test_weights_come_from_an_exported_electra(tmp_path):
    source = electra()
    source.export(tmp_path, word_tokenizer())
    method = finetune(untrained=None, init_from=str(tmp_path))
    method.warm_start(str(tmp_path))
    theirs = source.model.discriminator.network.electra.state_dict()
    ours = method.model.encoder.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_weights_come_from_a_bert_folder_with_and_without_its_pooler(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    source = BertForSequenceClassification(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes))
    save_network(source, tmp_path, word_tokenizer())
    for head in ("linear", "hugging_face"):
        method = finetune(untrained=None, init_from=str(tmp_path), head=head)
        method.warm_start(str(tmp_path))
        ours = dict(method.model.encoder.named_parameters())
        assert any("pooler" in name for name in ours) == (head == "hugging_face")
        theirs = dict(source.bert.named_parameters())
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_another_vocabulary_is_refused(tmp_path):
    electra().export(tmp_path, word_tokenizer())
    method = Finetune(init_from=str(tmp_path))
    method.label_names = ["a", "b"]
    with pytest.raises(CheckpointError, match=r"another tokenizer; set data.tokenizer to .*discriminator"):
        method.build(word_tokenizer(99), 64)


def test_a_source_that_is_nothing_and_sequences_that_are_too_long_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.init_from = .*nothing: there is no such folder"):
        finetune(untrained=None, init_from=str(tmp_path / "nothing"))
    method = Finetune(untrained=UntrainedEncoder(**FRESH))
    method.label_names = ["a", "b"]
    with pytest.raises(CheckpointError, match=r"data.sequence_length = 65: the encoder has 64 positions"):
        method.build(word_tokenizer(), 65)


NOT_FINITE = {
    "electra": "learning_rate weight_decay adam_epsilon temperature initializer_range generator_weight generator_width",
    "finetune": "learning_rate weight_decay adam_epsilon dropout layer_decay",
}


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
@pytest.mark.parametrize("method", NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused(method, value):
    names = NOT_FINITE[method].split()
    flags = [word for name in names for word in (f"--model.{name}", value)]
    with pytest.raises(ConfigError) as error:
        resolve(["--config", f"configs/{method}/debug.yaml", *flags], "fit")
    assert all(f"model.{name} = {value} (--model.{name}): must be" in str(error.value) for name in names)


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"every_n_steps": -1}, {"max_batches": 0}])
def test_a_validation_of_nothing_is_refused(options):
    with pytest.raises(CheckpointError, match=r"callbacks.validation.\w+: (0|-1) is below 1"):
        Validation(**options)


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"num_sentences": 0}])
def test_a_panel_of_nothing_is_refused(options):
    with pytest.raises(CheckpointError, match=r"callbacks.electra_panel.\w+: 0 is below 1"):
        ElectraPanel(**options)


def test_validation_wants_a_method():
    with pytest.raises(CheckpointError, match=r"callbacks.validation: LightningModule is no .*Method; derive"):
        Validation().setup(None, LightningModule(), "fit")


def test_the_names_of_the_classes_are_read_back_from_the_run(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(["x", "y"]))
    method = Finetune(untrained=FRESH)  # as `launch export` hands it over
    method.recall(tmp_path)
    method.build(word_tokenizer(), 64)
    assert method.model.output.out_features == 2


@pytest.mark.slow
def test_a_run_stands_alone_when_its_source_and_tokenizer_are_gone(tmp_path):
    source, run = tmp_path / "source", tmp_path / "run"
    electra().export(source, word_tokenizer())
    words = ["--model.untrained", "null", "--model.init_from", source, "--data.tokenizer", source / "discriminator"]
    words += ["--data.tokenizer.train", "null", "--run.dir", run, "--data.num_examples", "64"]
    words = ["--config", "configs/finetune/debug.yaml", *map(str, words)]
    launch("fit", *words, "--trainer.max_steps", "3")
    source.rename(tmp_path / "moved")
    assert "classification_loss" in launch("test", *words)
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.hidden_size == 32
    launch("fit", *words, "--trainer.max_steps", "6")
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    fresh = [word.replace(str(run), str(tmp_path / "fresh")) for word in words]
    assert "cannot be opened" in launch("fit", *fresh, code=1)  # a run that begins has nothing to fall back on


def test_what_of_a_source_is_not_taken_is_said(tmp_path):
    method, tokenizer = Finetune(init_from=str(tmp_path)), letters_tokenizer()
    source("bert", tmp_path)
    method.label_names = ["a", "b"]
    method.build(tokenizer, 24)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (
        ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    told = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(told))
    prompts = {"prompts": {"query": "q: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with pytest.warns(UserWarning, match=r"not taken: pooling by mean; prompts \(query\)$"):
        method.warm_start(str(tmp_path))
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"type": "x.Own", "path": "3_Own"}]))
    with pytest.warns(UserWarning, match=r"not taken: has a module x.Own$"):
        method.warm_start(str(tmp_path))
    BertForMaskedLM(BertConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"; 5 weights \(cls.predictions\)$"):
        method.warm_start(str(tmp_path))
