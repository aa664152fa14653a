"""Scores: a number for every prunable weight; the weights with the smallest numbers are pruned."""

from ganprune.scores.activation import channel_scores
from ganprune.scores.gradient import scored_weights
from ganprune.scores.registry import SCORES, Scores, get_score, register_score, score
from ganprune.scores.synflow import synflow

__all__ = [
    "SCORES",
    "Scores",
    "channel_scores",
    "get_score",
    "register_score",
    "score",
    "scored_weights",
    "synflow",
]
