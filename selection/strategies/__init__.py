"""How sequences are chosen among candidates: SIFT, and the baselines it is compared with."""
