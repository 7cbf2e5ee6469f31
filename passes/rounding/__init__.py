"""Rounding of weights by data: tasks, second order, learned, trellis."""
