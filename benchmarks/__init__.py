"""The benchmarks: a package of modules for each question, run from the repository's root."""
