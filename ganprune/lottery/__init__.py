"""Lottery tickets: finding them by iterative pruning with rewinding, and the controls of what was found."""

from ganprune.lottery.controls import (
    draw_random_ticket,
    reinitialise_ticket,
    shuffle_ticket,
)
from ganprune.lottery.iterative import REWINDINGS, Round, find_tickets
from ganprune.lottery.tickets import Ticket

__all__ = [
    "REWINDINGS",
    "Round",
    "Ticket",
    "draw_random_ticket",
    "find_tickets",
    "reinitialise_ticket",
    "shuffle_ticket",
]
