"""Lottery tickets: finding them, early birds, controls, transfer to other data."""

from __future__ import annotations

from ganprune.lottery.early_bird import EarlyBird, StopTraining, find_early_bird
from ganprune.lottery.iterative import REWINDINGS, Round, find_tickets
from ganprune.lottery.tickets import Snapshot, Ticket, random_mask, reinitialised, shuffled, transfer

__all__ = [
    "REWINDINGS",
    "EarlyBird",
    "Round",
    "Snapshot",
    "StopTraining",
    "Ticket",
    "find_early_bird",
    "find_tickets",
    "random_mask",
    "reinitialised",
    "shuffled",
    "transfer",
]
