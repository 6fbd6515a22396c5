"""Mistakes in the models that a run begins with, and in folders that are exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad.data import GOOD, PAIRS, POINTER
from tests.bad.trying import CANARY, Mistake

CODE = f"import pathlib\npathlib.Path({CANARY!r}).touch()\n"
Damage = Callable[[Path], object]  # takes the folder in which `enc` lies, and `run` where it is wanted


class Bomb:
    """What would be executed, were it unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(CANARY),)


def begun(message: str, more: str = "", source: str = "enc") -> Mistake:
    """Fine-tuning that begins with a folder."""
    fields = "--data.text_field text --data.label_field label"
    return started("finetune", GOOD, message, f"{fields} {more}", source)


def embedder(message: str, more: str = "", source: str = "enc") -> Mistake:
    """Training of embeddings that begins with a folder."""
    return started("matryoshka2d", PAIRS, message, more, source)


def started(method: str, data: str, message: str, more: str, source: str) -> Mistake:
    """Training of a method that begins with a folder."""
    words = (
        f"fit --config ROOT/configs/{method}/debug.yaml --model.untrained null --model.init_from {source} --run.dir new "
        "--data.cache_dir cache --data.source good.jsonl --data.accept '[unknown]' --data.tokenizer enc "
        f"--data.tokenizer.train null {more}"
    )
    return Mistake(words, message, {"good.jsonl": data})


def removed(name: str) -> Damage:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str | bytes) -> Damage:
    """Write a file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def config(**changes: object) -> Damage:
    """Change the configuration of the encoder."""
    return changed("enc/config.json", **changes)


def changed(name: str, **changes: object) -> Damage:
    """Change a JSON file."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(found))

    return change


def cut(name: str, share: float = 0.5) -> Damage:
    """Cut a file off."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def pickled(folder: Path) -> None:
    """Put a pickle in the place of the weights, which would run code."""
    (folder / "enc/model.safetensors").unlink()
    torch.save({"x": Bomb()}, folder / "enc/pytorch_model.bin")


def not_numbers(folder: Path) -> None:
    """Put NaN into every weight."""
    file = folder / "enc/model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(file).items()}, file, {"format": "pt"})


def own_code(folder: Path) -> None:
    """Say that the model is built by code beside it."""
    config(model_type="own", auto_map={"AutoConfig": "code.Own", "AutoModel": "code.Model"})(folder)
    put("enc/code.py", CODE)(folder)


def sentence(*modules: str, **files: str) -> Damage:
    """Lay the files of sentence-transformers beside the encoder."""

    def change(folder: Path) -> None:
        listed = [
            {
                "idx": n,
                "name": str(n),
                "path": "" if n == 0 else f"{n}_X",
                "type": f"sentence_transformers.models.{kind}",
            }
            for n, kind in enumerate(modules)
        ]
        put("enc/modules.json", json.dumps(listed))(folder)
        for name, content in files.items():
            put(f"enc/{name}", content)(folder)

    return change


def moved(folder: Path) -> None:
    """Leave an empty folder."""
    shutil.rmtree(folder / "enc")
    (folder / "enc").mkdir()


MODELS: dict[str, tuple[Mistake, Damage]] = {
    "model: no such folder": (begun(r"model\.init_from = \./nothing: there is no such folder", source="./nothing"), lambda _: None),
    "model: a file": (begun(r"model\.init_from = enc/config\.json: is a file", source="enc/config.json"), lambda _: None),
    "model: an address": (begun(r"s3://bucket/model", source="s3://bucket/model"), lambda _: None),
    "model: no configuration": (begun(r"model\.init_from = enc"), removed("enc/config.json")),
    "model: a configuration that is no JSON": (begun(r"enc/config\.json"), put("enc/config.json", "{")),
    "model: a configuration that is a list": (begun(r"'enc': cannot be opened"), put("enc/config.json", "[]")),
    "model: a configuration by pointer": (begun(r"enc/config\.json"), put("enc/config.json", POINTER)),
    "model: no weights": (begun(r"model\.init_from = enc"), removed("enc/model.safetensors")),
    "model: weights by pointer": (begun(r"model\.init_from = enc: .*git-lfs pointer"), put("enc/model.safetensors", POINTER)),
    "model: half the weights": (begun(r"model\.init_from = enc"), cut("enc/model.safetensors")),
    "model: weights that are empty": (begun(r"model\.init_from = enc"), put("enc/model.safetensors", "")),
    "model: a pickle": (begun(r"model\.init_from = enc: .*a pickle that carries code"), pickled),
    "model: code of its own": (begun(r"model\.init_from = enc: .*code of its own"), own_code),
    "model: of an unknown family": (begun(r"model\.init_from = enc"), config(model_type="nothing")),
    "model: of another family": (begun(r"model\.init_from = enc: is of the family gpt2"), put("enc/config.json", '{"model_type": "gpt2"}')),
    "model: of pictures": (begun(r"model\.init_from = enc"), config(model_type="vit")),
    "model: huge": (begun(r"model\.init_from = enc.*GiB"), config(hidden_size=10_000_000)),
    "model: many layers": (begun(r"model\.init_from = enc.*layers"), config(num_hidden_layers=10**9)),
    "model: no heads": (begun(r"model\.init_from = enc.*num_attention_heads"), config(num_attention_heads=0)),
    "model: heads that do not divide": (begun(r"model\.init_from = enc.*heads"), config(num_attention_heads=5)),
    "model: a width in words": (begun(r"'hidden_size'"), config(hidden_size="wide")),
    "model: other widths than its weights": (begun(r"model\.init_from = enc: .*other shapes"), config(intermediate_size=64)),
    "model: more layers than its weights": (begun(r"model\.init_from = enc.*missing"), config(num_hidden_layers=7)),
    "model: fewer tokens than its tokenizer": (begun(r"model\.init_from = enc.*tokens"), config(vocab_size=9)),
    "model: shorter than the data": (begun(r"sequence_length|positions"), config(max_position_embeddings=16)),
    "model: a tokenizer that is no JSON": (begun(r"tokenizer"), put("enc/tokenizer.json", "{")),
    "model: a tokenizer by pointer": (begun(r"tokenizer"), put("enc/tokenizer.json", POINTER)),
    "model: an activation that is none": (begun(r"model\.init_from = enc: .*cannot be built.*magic"), config(hidden_act="magic")),
    "model: a dropout of five": (begun(r"model\.init_from = enc: .*cannot be built"), config(hidden_dropout_prob=5)),
    "model: padding out of the table": (begun(r"model\.init_from = enc: .*cannot be built"), config(pad_token_id=9999)),
    "model: weights as whole numbers": (begun(r"model\.init_from = enc"), config(dtype="int8")),
    "model: quantised": (begun(r"model\.init_from = enc: is quantised"), config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
    "model: weights that are no numbers": (embedder(r"enc: .* holds NaN or infinite values"), not_numbers),
    "model: an adapter": (begun(r"model\.init_from = enc.*adapter"), put("enc/adapter_config.json", "{}")),
    "model: untrained beside it": (begun(r"model\.untrained|init_from", "--model.untrained.hidden_size 32"), lambda _: None),
    "model: sentences without pooling": (embedder(r"model\.init_from = enc: has no Pooling"), sentence("Transformer")),
    "model: sentences of pictures": (embedder(r"model\.init_from = enc"), sentence("CLIPModel")),
    "model: sentences of no JSON": (embedder(r"model\.init_from = enc"), put("enc/modules.json", "{")),
    "model: pooling without its file": (embedder(r"model\.init_from = enc"), sentence("Transformer", "Pooling")),
    "model: pooling by what is not known": (embedder(r"model\.init_from = enc.*pools by|enc"), sentence("Transformer", "Pooling", **{"1_X/config.json": '{"word_embedding_dimension": 32, "pooling_mode": "magic"}'})),
    "model: pooling of another width": (embedder(r"model\.init_from = enc.*width"), sentence("Transformer", "Pooling", **{"1_X/config.json": '{"word_embedding_dimension": 99, "pooling_mode_mean_tokens": true}'})),
    "model: a module that is not kept": (embedder(r"model\.init_from = enc.*LSTM"), sentence("Transformer", "LSTM", "Pooling")),
    "model: to drop what is not there": (embedder(r"model\.drop_modules|no Dense", "--model.drop_modules '[Dense]'"), lambda _: None),
}  # fmt: skip
