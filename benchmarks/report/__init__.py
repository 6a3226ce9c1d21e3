"""The report: results in JSON -> Markdown and plots, a module for each section.

It runs where Mayfly is not installed, so it imports nothing of Mayfly, and matplotlib only to draw.
"""
