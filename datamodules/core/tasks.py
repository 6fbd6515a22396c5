"""What embeddings are judged on: tasks over a table of texts, as the data hands them to the methods.

Shape suffixes: N pairs of texts, Q queries, M documents, J judgements. Tensors of texts hold int64 numbers of texts in
the table that all tasks of a split share. Both `lightning_modules` and `datamodules` import this module, so it imports
torch and typing only.
"""

from typing import NamedTuple

from torch import Tensor


class Sts(NamedTuple):
    """Semantic textual similarity: pairs of texts with a score that the cosines should rank alike."""

    name: str
    first_N: Tensor
    second_N: Tensor
    score_N: Tensor  # float32


class Retrieval(NamedTuple):
    """Search: for every query the judged documents, among all documents; what is not judged is not relevant.

    As in BEIR a query's own document is left out of its ranking, and a judged one that is not there is never found.
    """

    name: str
    query_Q: Tensor
    document_M: Tensor
    judged_J: Tensor  # int64, row in query_Q
    document_J: Tensor  # int64, row in document_M; below 0, and each another, for documents that are not there
    grade_J: Tensor  # float32, 0 for a document that was judged and is not relevant
    own_Q: Tensor | None = None  # int64, row in document_M of a query's own document, -1 for none; None: none has one


class PairClasses(NamedTuple):
    """Pairs that belong together, label 1, or do not, label 0."""

    name: str
    first_N: Tensor
    second_N: Tensor
    label_N: Tensor  # int64


class TextClasses(NamedTuple):
    """Texts with classes, for probes that are fitted to the training part; labels are int64 numbers from 0."""

    name: str
    train_N: Tensor
    train_label_N: Tensor
    test_N: Tensor
    test_label_N: Tensor


Task = Sts | Retrieval | PairClasses | TextClasses
