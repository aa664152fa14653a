"""Allocation: from scores to a mask, and how many weights each layer keeps."""

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, apportion, lamp_scores

__all__ = ["ALLOCATION_NAMES", "allocate", "apportion", "lamp_scores"]
