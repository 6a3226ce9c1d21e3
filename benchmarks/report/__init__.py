"""The sections of the report, a module each: results as their benchmarks write them -> lines of
Markdown, and plots.

They measure nothing and import nothing of Mayfly, for they run where it is not installed;
matplotlib only to draw.
"""
