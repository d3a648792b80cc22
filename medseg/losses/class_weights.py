"""Weights per class from the voxels of a training set, by a word in a loss: ``cross_entropy(weight=balanced)``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from medseg.errors import nearest

Counts = Float64[np.ndarray, "cases classes"]
Weighing = Float64[np.ndarray, " classes"]

KNOBS = ("weight", "class_weight")
"""The knobs of losses that hold a number per class."""


def inverse(counts: Counts) -> Weighing:
    r"""One over a class's share of the voxels: :math:`N / n_c`."""
    return np.asarray(counts.sum() / counts.sum(0))


def sqrt_inverse(counts: Counts) -> Weighing:
    r"""Its root, :math:`\sqrt{N / n_c}`: Wong et al. 2018, 3D segmentation with exponential logarithmic loss."""
    return np.asarray(np.sqrt(inverse(counts)))


def balanced(counts: Counts) -> Weighing:
    r"""scikit-learn's ``class_weight="balanced"``: :math:`N / (C n_c)`, so that every class weighs the same in all."""
    return np.asarray(inverse(counts) / counts.shape[1])


def median_frequency(counts: Counts) -> Weighing:
    r"""The median of the classes' frequencies over each: :math:`\mathrm{median}(f) / f_c`.

    A frequency is taken over the cases that have the class: Eigen & Fergus 2015, arXiv 1411.4734.
    """
    frequency = counts.sum(0) / np.where(counts > 0, counts.sum(1, keepdims=True), 0).sum(0)
    return np.asarray(np.median(frequency) / frequency)


def effective_number(counts: Counts, *, beta: float = 0.9999) -> Weighing:
    r"""One over the effective number, :math:`(1 - \beta) / (1 - \beta^{n_c})`, summing to the number of classes.

    Cui et al. 2019, arXiv 1901.05555, who count images: classes of far more than :math:`1 / (1 - \beta)` voxels all
    weigh the same, so volumes want a ``beta`` nearer to 1, such as 0.9999999.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number needs a beta from 0 to below 1, got {beta:g}")
    weights = (1 - beta) / -np.expm1(counts.sum(0) * np.log(beta)) if beta else np.ones(counts.shape[1])
    return np.asarray(weights / weights.sum() * counts.shape[1])


RULES: dict[str, Callable[..., Weighing]] = {
    rule.__name__: rule for rule in (inverse, sqrt_inverse, balanced, median_frequency, effective_number)
}
"""The words that stand for weights."""


def class_weights(counts: ArrayLike, rule: str) -> list[float]:
    """Weigh classes by how many voxels of the training set they have.

    Args:
        counts: Voxels per class, background included, ``(classes,)``, or of each case ``(cases, classes)``; of the
            training set, not of a batch. NaN where a class was not annotated: it is taken for the mean of the others.
        rule: A word of `RULES`, such as ``balanced``, with its options if it has any: ``effective_number(beta=0.99)``.

    Returns:
        A number per class; 0 for a class that has no voxel, which counts in no sum of the rule either.

    Raises:
        ValueError: The rule or an option is unknown, or the counts are not numbers of voxels of which some are above 0.

    Example:
        >>> class_weights([90, 10, 0], "balanced")
        [0.5555555555555556, 5.0, 0.0]
    """
    weigh = _rule(rule)
    table = np.atleast_2d(np.asarray(counts))
    legal = table.ndim == 2 and table.dtype.kind in "iuf" and not np.isinf(table).any()
    if not legal or not np.nansum(table) > 0 or np.nanmin(table) < 0:
        raise ValueError("class weights need voxels per class, (classes,) or (cases, classes): 0 or more, not all 0")
    present = np.nansum(table, 0) > 0
    known = table[:, present]
    weights = np.zeros(table.shape[1])
    weights[present] = weigh(np.where(np.isnan(known), np.nanmean(known, 0), known))
    return [float(weight) for weight in weights]


def words_in(expression: str) -> tuple[str, ...]:
    """The rules that stand in a loss in place of class weights, as they are written there.

    Example:
        >>> words_in("dice + cross_entropy(weight=balanced)")
        ('balanced',)
    """
    return tuple(dict.fromkeys(_word(knob) for knob in _worded(tree_of(expression))))


def weighted(expression: str, weights: Mapping[str, Sequence[float]]) -> str:
    """Write numbers where a loss has words for class weights.

    Raises:
        ValueError: There are no numbers for a word.

    Example:
        >>> weighted("cross_entropy(weight=balanced)", {"balanced": [0.5, 2.0]})
        'cross_entropy(weight=[0.5, 2.0])'
    """
    tree = tree_of(expression)
    for knob in (worded := _worded(tree)):
        if (word := _word(knob)) not in weights:
            _rule(word)
            raise ValueError(
                f"{knob.arg}={word} stands for numbers that come from a training set, and none is known here. "
                "Give its voxels per class, build_loss(..., counts=[...]), or the numbers themselves"
            )
        knob.value = ast.List([ast.Constant(float(number)) for number in weights[word]], ast.Load())
    return ast.unparse(tree) if worded else expression


_DEEPEST = 100  # far above what a sum of all losses is


def tree_of(expression: str) -> ast.AST:
    """A loss as Python reads it; an empty tree of what cannot be read.

    Raises:
        ValueError: It is nested so deeply that whether it can be read depends on who asks.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        level: list[ast.AST] = [tree]
        for _ in range(_DEEPEST):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
    except (SyntaxError, ValueError):
        return ast.Module([], [])  # whoever reads the loss says what is wrong with it
    except (RecursionError, MemoryError):
        level = [ast.Pass()]
    if level:
        raise ValueError(f"a loss is nested more than {_DEEPEST} levels deep. Write a sum of few terms")
    return tree


def _worded(tree: ast.AST) -> list[ast.keyword]:
    """The knobs for class weights that hold a word."""
    knobs = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in KNOBS]
    return [knob for knob in knobs if _word(knob)]


def _word(knob: ast.keyword) -> str:
    """What stands in place of a list, or an empty string."""
    match knob.value:
        case ast.Constant(value=str(word)):
            return word
        case ast.Name(id=name) if name.lower() not in ("none", "null", "true", "false", "inf"):
            return name
        case ast.Call():
            return ast.unparse(knob.value)
    return ""


def _rule(word: str) -> Callable[[Counts], Weighing]:
    """A rule with its options."""
    try:
        node = ast.parse(word.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name, options = ast.unparse(call.func), {str(k.arg): float(ast.literal_eval(k.value)) for k in call.keywords}
        if name in RULES and not call.args:
            weigh = partial(RULES[name], **options)
            weigh(np.ones((1, 2)))  # an option that is unknown or out of range is told before any counting
            return weigh
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{word!r} is no rule for class weights ({error})") from None
    guess = nearest(name, list(RULES))
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise ValueError(f"{word!r} is no rule for class weights; they are: {', '.join(RULES)}.{hint}")
