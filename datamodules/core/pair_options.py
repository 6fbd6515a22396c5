"""The options of pairs and of the sets that embeddings are judged on, as a configuration gives them."""

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["sts", "retrieval", "pair_classification", "classification"]


@dataclass(frozen=True)
class Columns:
    """Where the texts and the label of a record stand; what is not named is found by its usual name.

    Args:
        anchor: column of the anchor, query, question or first sentence; of classification, the text.
        positive: column of the positive, passage, answer or second sentence.
        negatives: columns of hard negatives; an empty list leaves out those that are there.
        label: column of the score or label; "" leaves out one that is there.
    """

    anchor: str | None = None
    positive: str | None = None
    negatives: list[str] | None = None
    label: str | None = None


@dataclass(frozen=True)
class Prompts:
    """What is put in front of a text before it is tokenised.

    Args:
        anchor: in front of anchors, queries and first sentences.
        positive: in front of positives, passages and second sentences.
        negatives: in front of hard negatives; null: as for positives.
    """

    anchor: str = ""
    positive: str = ""
    negatives: str | None = None

    def of_column(self, number: int) -> str:
        """Return the prompt of a column of texts."""
        negatives = self.positive if self.negatives is None else self.negatives
        return (self.anchor, self.positive, negatives)[min(number, 2)]


@dataclass(frozen=True)
class PairSource:
    """Pairs to train on.

    Args:
        path: a file, a folder, a pattern, a hub data set NAME:CONFIG:SPLIT, or "embedded".
        columns: where texts and label stand, when their names are not the usual ones.
        labels: number that each word or number in the label column stands for; null leaves such records out.
        prompts: what is put in front of the texts.
        query_tokens: longest anchor in tokens, special ones included; null: data.sequence_length.
        passage_tokens: longest positive or negative; null: data.sequence_length.
        weight: share of the steps, relative to the other sources; null for all: their numbers of examples.
    """

    path: str
    columns: Columns | None = None
    labels: dict[str, float | None] | None = None
    prompts: Prompts | None = None
    query_tokens: int | None = None
    passage_tokens: int | None = None
    weight: float | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Texts on which embeddings are judged.

    Args:
        task: sts and pair_classification want pairs with a score or a label; retrieval pairs, or a folder in the form
            of BEIR; classification texts with classes, for probes.
        path: a source as for training; of classification the part that is tested.
        train: of classification the part to which the probes are fitted.
        corpus: of retrieval in the form of BEIR the documents, where `path` does not hold them.
        queries: the same for the queries.
        qrels: the same for the judgements.
        columns: where texts and label stand, when their names are not the usual ones.
        labels: number that each word or number in the label column, or grade of the judgements, stands for; null leaves
            such records out.
        prompts: what is put in front of first and second texts, or queries and documents.
        rank_own: of retrieval in the form of BEIR, rank the document of a query's own id too, which BEIR leaves out.
        query_tokens: longest first text in tokens; null: data.sequence_length.
        passage_tokens: longest second text or document; null: data.sequence_length.
    """

    task: TaskName
    path: str | None = None
    train: str | None = None
    corpus: str | None = None
    queries: str | None = None
    qrels: str | None = None
    columns: Columns | None = None
    labels: dict[str, float | None] | None = None
    prompts: Prompts | None = None
    query_tokens: int | None = None
    passage_tokens: int | None = None
    rank_own: bool = False
