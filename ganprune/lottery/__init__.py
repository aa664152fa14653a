"""Lottery tickets: finding them, early birds, controls, transfer to other data."""

from ganprune.lottery.controls import (
    draw_random_ticket,
    reinitialise_ticket,
    shuffle_ticket,
    transfer_ticket,
)
from ganprune.lottery.early_bird import EarlyBird, find_early_bird
from ganprune.lottery.iterative import REWINDINGS, Round, find_tickets
from ganprune.lottery.tickets import Ticket

__all__ = [
    "REWINDINGS",
    "EarlyBird",
    "Round",
    "Ticket",
    "draw_random_ticket",
    "find_early_bird",
    "find_tickets",
    "reinitialise_ticket",
    "shuffle_ticket",
    "transfer_ticket",
]
