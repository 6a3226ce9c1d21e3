"""What is wanted of the numbers that benchmarks find.

Plain values, for those who measure and for the report, which is written where Mayfly is not
installed.
"""

from __future__ import annotations

# To the first token of an adapter that has just been trained, times that of a resident one.
MOST_TIMES = 1.15
LEAST_SPEEDUP = 5.0  # requests a second, times the naive way's
LEAST_THROUGHPUT, MOST_TTFT = 0.97, 1.1  # of requests that are not adapted, times plain vLLM's
# 99th percentile of accepted requests under overload, times that of unloaded ones.
MOST_SLOWER = 2.0
MOST_LATE_STEPS = 1.0  # that training ends after its deadline
# A client's search or adaptation beside a request of 2,048 long prompts, times that alone.
MOST_TIMES_ALONE = 3.0
# That an adaptation may end after its seconds: one unit of work of a stage, and the way back.
UNIT_SECONDS = 1.0
# Requests that tell a 99th percentile; one of fewer is little more than the largest, and is marked.
ENOUGH = 20
# Of one core, while nobody asks: all processes of a server; vLLM's worker.
MOST_IDLE, MOST_IDLE_WORKER = 0.10, 0.02
