"""Canonical texts of models, which tests compare."""
