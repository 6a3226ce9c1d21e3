"""What several benchmarks share: a real server, counts of broken promises, thresholds."""
