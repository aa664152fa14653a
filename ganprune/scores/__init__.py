"""Scores: a number for every prunable weight; the weights with the smallest numbers are pruned."""

import ganprune.scores.synflow  # noqa: F401 (registers its score)
from ganprune.scores.activation import channel_scores
from ganprune.scores.gradient import scored_weights
from ganprune.scores.registry import SCORES, Scores, get_score, register_score, score

__all__ = [
    "SCORES",
    "Scores",
    "channel_scores",
    "get_score",
    "register_score",
    "score",
    "scored_weights",
]
