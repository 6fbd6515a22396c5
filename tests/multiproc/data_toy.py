"""A run of a few steps that writes down which tokens each rank saw: `data_toy.py FOLDER RANKS STEPS KIND`."""

import json
import sys
from pathlib import Path

from launch.importing import importing

with importing():
    import lightning
    import torch
    from lightning.pytorch.strategies import DDPStrategy

    from datamodules.core.pair_options import EvaluationSet
    from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
    from datamodules.pairs import TextPairs
    from datamodules.text import TextCorpus
    from launch.leaving import leave


class Notes(lightning.LightningModule):
    """Keep the tokens of every step, per rank."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[list[int]]] = []
        self.validated: list[int] = []
        self.items = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: list, index: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.layer(torch.ones(1, 1)).sum())
        self.optimizers().step()
        self.seen.append([micro_batch["ids_T"].tolist() for micro_batch in batch])

    def validation_step(self, batch: list, index: int) -> None:
        self.items += 1
        counted = [micro_batch for micro_batch in batch if not micro_batch.get("filler")]
        self.validated += [place for micro_batch in counted for place in micro_batch["sample_B"].tolist()]


def corpus(folder: Path, streaming: bool) -> TextCorpus:
    """Read the texts beside the folder."""
    return TextCorpus(
        TokenizerOptions(train=WordPieceTraining(300)),
        8,
        2,
        str(folder.parent / "texts"),
        str(folder.parent / "texts/0.txt"),
        streaming=streaming,
        examples="packed" if streaming else "segments",
        sequence_length=32,
        length_grouping_steps=0 if streaming else 4,
        num_prepare_processes=1,
        cache_dir=str(folder / "cache"),
    )


def pairs(folder: Path) -> TextPairs:
    """Read two sources of pairs beside the folder, and a set to judge by."""
    return TextPairs(
        TokenizerOptions(train=WordPieceTraining(300)),
        8,
        2,
        sources={"a": "a.jsonl", "b": "b.jsonl"},
        validation={"similar": EvaluationSet("sts", "b.jsonl")},
        root=str(folder.parent),
        sequence_length=32,
        num_workers=1,
        cache_dir=str(folder / "cache"),
    )


def main(folder: Path, ranks: int, steps: int, kind: str) -> None:
    """Train from the folder's checkpoint, if there is one, and write notes for each rank."""
    made = []
    data = pairs(folder) if kind == "pairs" else corpus(folder, kind == "streaming")
    prepare = data.prepare_data
    data.prepare_data = lambda: made.append(prepare())
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
    )
    checkpoint = folder / "last.ckpt"
    module = Notes()
    trainer.fit(module, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    trainer.strategy.barrier()
    trainer.save_checkpoint(checkpoint)
    notes = {"seen": module.seen, "validated": module.validated, "items": module.items, "made": len(made)}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(notes | {"lines": data.describe()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    leave(0)
