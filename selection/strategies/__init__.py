"""Strategies that choose among candidates: SIFT, and the baselines it is compared with."""
