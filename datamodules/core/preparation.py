"""From options to a tokenizer and tokenised corpora in the cache folder: what happens before training."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from datamodules.core import wordpiece
from datamodules.core.corpus import Plan, digest, text_description
from datamodules.core.errors import DataError
from datamodules.core.folders import Located
from datamodules.core.publishing import alone
from datamodules.core.sources import EMBEDDED, Source, find, has_part, is_hub_name, local
from datamodules.core.tokenization import Recipe
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerFast

SHORTEST_SEQUENCE = 8
T = TypeVar("T")


class Places(NamedTuple):
    """Where tokenizer and corpora are, as rank 0 tells the others, and the fingerprint of the training text."""

    tokenizer: str
    corpora: dict[str, str]
    fingerprint: str


def told(work: Callable[..., T]) -> Callable[..., T]:
    """Let a method of Preparation tell in one line what the system refuses, as a folder that cannot be written."""

    @wraps(work)
    def wrapped(self: "Preparation", *arguments: Any) -> T:
        try:
            return work(self, *arguments)
        except OSError as error:
            place = Path(error.filename or self.cache)
            in_cache = place.is_relative_to(self.cache) or self.cache.is_relative_to(place)
            fix = "set data.cache_dir to a folder with room that can be written" if in_cache else "let it be read"
            raise DataError(f"{place}: {error.strerror or error}; {fix}") from error

    return wrapped


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: the options of TextCorpus that matter for it.

    `sources` names the text of train, val and test; `reading` and `recipe` hold the options of Source and Recipe.
    """

    tokenizer: TokenizerOptions
    sources: dict[str, str | None]
    reading: dict[str, Any]
    validation_fraction: float
    streaming: bool
    recipe: dict[str, Any]
    num_processes: int
    cache: Path
    finds: dict[tuple[str, str], Located] = field(default_factory=dict, compare=False)

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            DataError: the key, its value, the rule.
        """
        self.tokenizer.check("train: {vocab_size: 8192}")
        length = self.recipe["sequence_length"]
        if length < SHORTEST_SEQUENCE:
            raise DataError(f"data.sequence_length = {length}: must be at least {SHORTEST_SEQUENCE}")
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"data.validation_fraction = {self.validation_fraction}: must be from 0 to below 1")
        if self.streaming and self.recipe["examples"] != "packed":
            raise DataError(f"data.examples = {self.recipe['examples']!r}: data.streaming makes packed examples only")

    @told
    def make(self, seed: int, kept: Path | None = None) -> Places:
        """Make what is not there yet: the tokenizer, and a corpus for every split that has text.

        `kept` is a tokenizer to fall back on where the named one cannot be opened.

        Raises:
            DataError: the source, a record or the tokenizer is no good.
        """
        tokenizer = self.make_tokenizer(kept)
        plans = self.plans(str(tokenizer), seed)
        for plan in plans.values():
            plan.make(self.num_processes)
        return Places(
            str(tokenizer),
            {split: str(plan.folder) for split, plan in plans.items()},
            plans["train"].fingerprint
            if "train" in plans
            else digest([self.sources["train"], self.tokenizer.name or str(self.trained_folder())]),
        )

    @told
    def make_part(self, seed: int, part: int, num_parts: int) -> dict[str, tuple[int, int]]:
        """Make every num_parts-th shard of each corpus, from the part-th; return how many of how many are there.

        Raises:
            DataError: the source or a record is no good, or the tokenizer is not there yet.
        """
        folder = self.trained_folder()
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: the tokenizer has not been trained yet, and a part uses one that exists")
        plans = self.plans(str(folder or self.tokenizer.name), seed)
        return {split: plan.make_part(self.num_processes, part, num_parts) for split, plan in plans.items()}

    def trained_folder(self) -> Path | None:
        """Say where the trained tokenizer belongs; None when one is given by name."""
        if self.tokenizer.train is None:
            return None
        text = text_description(self.source("train"), self.cache)
        return self.cache / "tokenizers" / digest([text, asdict(self.tokenizer.train), wordpiece.RULE])

    @told
    def make_tokenizer(self, kept: Path | None = None) -> str | Path:
        """Return the name or folder of the tokenizer, which is trained unless it has been."""
        if self.tokenizer.train is None:
            return wordpiece.usable(self.tokenizer.name, kept)
        if kept is not None and wordpiece.is_whole(kept):
            return kept  # that with which the run began, by whichever rule it was trained
        folder = self.trained_folder()
        if not wordpiece.is_whole(folder):
            with alone(folder, f"the tokenizer in {folder}"):
                if not wordpiece.is_whole(folder):
                    wordpiece.train(self.source("train"), self.tokenizer.train, folder)
        return folder

    def source(self, split: str) -> Source | None:
        """Find the text of a split; None when there is none."""
        name, train, share = self.sources[split], self.sources["train"], (0.0, 1.0)
        has_own = has_part(train, split, self.found)
        own_splits = self.streaming or train == EMBEDDED or has_part(train, "val", self.found)
        held_out = self.sources["val"] is None and not own_splits and self.validation_fraction > 0
        if name is None and (train == EMBEDDED or has_own or (split == "val" and held_out)):
            name = train
        if held_out and split != "test":
            bound = self.validation_fraction
            share = (0.0, bound) if split == "val" else (bound, 1.0)
        if name is None:
            return None
        found = self.found(name, "train" if name == train != EMBEDDED and not has_own else split)
        if self.sources[split] is None and has_own:
            found.serve(name)
        return Source(found.files, **self.reading, share=share)

    def found(self, name: str, split: str) -> Located:
        """Find the files behind a name, once: a folder may hold many."""
        if (name, split) not in self.finds:
            self.finds[name, split] = find(name, split)
        return self.finds[name, split]

    def located(self, split: str) -> Located:
        """Give what the own source of a split leads to, as far as it has been looked for."""
        return self.finds.get((self.sources[split] or self.sources["train"], split), Located(()))

    def plans(self, tokenizer: str, seed: int) -> dict[str, Plan]:
        """Say for every split that has text, and is not streamed, which corpus is to be made."""
        opened = wordpiece.load(tokenizer)
        recipe, text = self.recipe_for(opened, seed), opened.backend_tokenizer.to_str()
        splits = [split for split in self.sources if not (self.streaming and split == "train")]
        sources = {split: source for split in splits if (source := self.source(split)) is not None}
        return {split: Plan(split, source, recipe, text, self.cache) for split, source in sources.items()}

    def recipe_for(self, tokenizer: "PreTrainedTokenizerFast", seed: int) -> Recipe:
        """Join the options with the ids of a tokenizer."""
        return Recipe(
            **self.recipe,
            seed=seed,
            vocab_size=len(tokenizer),
            cls_id=tokenizer.cls_token_id,
            sep_id=tokenizer.sep_token_id,
        )

    def located_for_stream(self) -> Located:
        """Give what the streamed training text leads to; of the hub that is not known beforehand."""
        name = self.sources["train"]
        return Located(()) if is_hub_name(name) else self.found(name, "train")

    def stream_hash(self) -> str | None:
        """Hash the files of the streamed training text; None of the hub, whose files are not here."""
        source = None if is_hub_name(self.sources["train"]) else self.source("train")
        return digest(text_description(source, self.cache)) if source else None

    def streamed(self) -> "IterableDataset":
        """Open the training text as a stream."""
        from datamodules.core import streaming

        name = self.sources["train"]
        if is_hub_name(name):
            return streaming.from_hub(name, self.reading["text_field"])
        return streaming.from_files(self.source("train"))


def cache_folder(given: str | None) -> Path:
    """Choose the cache folder: the given one, or tokamak under XDG_CACHE_HOME or ~/.cache."""
    if given is not None:
        return local(given)
    return local(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tokamak"
