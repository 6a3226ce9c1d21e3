"""From files to chunks of tokens: which files are read, how, how their texts are split, and how
their examples are rendered.
"""
