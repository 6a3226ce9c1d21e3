"""Thresholds that the benchmarks' numbers are held to.

Plain values, for the benchmarks and for the report, which runs where Mayfly is not installed.
"""

from __future__ import annotations

# Time to the first token of an adapter that was just trained, over that of a resident adapter.
MAX_HOT_LOAD_RATIO = 1.15
# Requests per second, over those of a PEFT loop per request.
MIN_SPEEDUP = 5.0
# Throughput and time to the first token of unadapted requests, over plain vLLM's.
MIN_THROUGHPUT_RATIO, MAX_TTFT_RATIO = 0.97, 1.1
# 99th percentile of accepted requests under overload, over that of unloaded ones.
MAX_OVERLOAD_RATIO = 2.0
# Steps that training may end after its deadline.
MAX_LATE_STEPS = 1.0
# Time of a client's search or adaptation beside a request of 2,048 long prompts, over that alone.
MAX_FAIRNESS_RATIO = 3.0
# Seconds that an adaptation may end after its budget: one unit of work of a stage, and transport.
GRACE_SECONDS = 1.0
# Requests that a 99th percentile needs; with fewer it is close to the maximum, and is marked.
MIN_P99_REQUESTS = 20
# Share of one core of an idle server: of all its processes, and of vLLM's worker.
MAX_IDLE_SHARE, MAX_IDLE_WORKER_SHARE = 0.10, 0.02
# Twenty steps of one request, from its arrival to the loaded adapter, over those of an earlier
# commit: of a real model and of nano.
MIN_STEP_SPEEDUP = {"real": 2.0, "nano": 1.2}
# Time of a token with an adapter, over one of the base model.
MAX_ADAPTED_TOKEN_RATIO = 1.15
# Tokens of the base model and sequences added to a corpus per second, over those of an earlier
# commit, on a CPU without AMX.
MIN_BASE_TOKEN_SPEEDUP, MIN_INGEST_SPEEDUP = 1.4, 1.3
# Share of a corpus's nearest neighbours that the embeddings of a lower precision find.
MIN_NEIGHBOUR_RECALL = 0.99
# Points of exact match of the chosen trained arm over ten examples in the prompt.
MIN_FEWSHOT_GAIN = 20.0
# The adapter of a corpus alone: its share of the best arm's gain, and of the seconds of 50 steps.
MIN_INSTANT_GAIN_SHARE, MAX_INSTANT_SECONDS_SHARE = 0.9, 0.05
# Training a hundredth more of documents, over training all anew; requests beside a training of a
# corpus, over those alone.
MAX_INCREMENT_SHARE, MAX_BESIDE_TRAINING_RATIO = 0.05, 1.3
# `auto` on text younger than the model: its share of the best arm's gain, and of its seconds.
MIN_AUTO_GAIN_SHARE, MAX_AUTO_SECONDS_SHARE = 0.9, 1 / 3
