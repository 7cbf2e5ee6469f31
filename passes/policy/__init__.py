"""Policies: layer -> schemes, as text, JSON and CSV."""

from __future__ import annotations

from passes.policy.policies import (
    FLOAT,
    POLICY_KEY,
    LayerPolicy,
    Policy,
    Scheme,
    Site,
    load_policy,
)

__all__ = ["FLOAT", "POLICY_KEY", "LayerPolicy", "Policy", "Scheme", "Site", "load_policy"]
